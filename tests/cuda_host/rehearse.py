"""setup.py's CUDA branch without a GPU: `python -m tests.cuda_host.rehearse` (`make cuda-check`).

Needs nvcc and any torch. In a copy of the sources, setup.py builds every `.cu` with torch's own
flags for every architecture and links it against stand-ins of torch's CUDA libraries; a child
process loads the result and looks for its kernels in the dispatcher. What ptxas says of each kernel
is compared with the record (figures.json):

    spills above the record, or above 0 where there is none     fail
    more than 48 KiB of static shared memory                    fails (ptxas refuses it)
    other registers than recorded                               are shown

Registers and spills belong to one release of nvcc: under another one they are only shown.
`--record` writes them down. The `.cpp` files are left out, since the tests build them anyway;
`--all` builds them too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RECORD = HERE / "figures.json"

# What the ops ask of torch's CUDA libraries. Torch's own are there at run time.
STAND_IN = "int aoti_torch_get_current_cuda_stream(int d, void** s) { (void)d; *s = 0; return 0; }"
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so")

# A CPU build of torch is told that it is a CUDA build of nvcc's release.
BUILD = """
import os, runpy, sys, torch
from torch.utils import cpp_extension
torch.version.cuda = os.environ["REHEARSAL_CUDA"]
cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"]
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
LOAD = """
import ctypes, json, os, sys
import torch
for stand_in in sys.argv[1:]:
    ctypes.CDLL(stand_in, mode=ctypes.RTLD_GLOBAL)
import fedkernels
from fedkernels import _extension
kernels = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
print(json.dumps({
    "found at": os.path.dirname(fedkernels.__file__),
    "why not": _extension.why_no_cuda(),
    "architectures": _extension.architectures(),
    "ops": list(kernels),
}))
"""


@dataclass(frozen=True)
class Figures:
    """What ptxas says of one kernel on one architecture; bytes, but for the registers."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


@dataclass
class Rehearsal:
    """What came of it. figures: kernel -> architecture -> what ptxas says."""

    nvcc: str
    architectures: str
    ops: list[str]
    figures: dict[str, dict[str, Figures]]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def cuda_home() -> Path | None:
    """The toolkit's folder: CUDA_HOME, or where nvcc says that it lives (it may be a wrapper)."""
    given = os.environ.get("CUDA_HOME")
    if given:
        return Path(given)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry_run = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(dry_run, capture_output=True, text=True).stderr
    top = re.search(r"TOP=(\S+)", said)
    return Path(os.path.normpath(top.group(1))) if top else Path(nvcc).resolve().parents[1]


def nvcc_release(home: Path) -> str:
    said = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found.group(1) if found else "unknown"


def rehearse(
    folder: Path, *, everything: bool = False, architectures: str | None = None
) -> Rehearsal:
    """Builds and loads in `folder`; raises RuntimeError with the output of what failed.

    everything: the .cpp files too. architectures: others than setup.py's own list.
    """
    home = cuda_home()
    if home is None:
        raise RuntimeError("no nvcc in PATH and no CUDA_HOME")
    copy_sources(folder, everything)
    stand_ins = make_stand_ins(folder / "stand-ins")
    release = nvcc_release(home)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("TORCH_CUDA_ARCH_LIST", "PYTHONPATH")},
        "CUDA_HOME": str(home),
        "REHEARSAL_CUDA": release,
        "FEDKERNELS_CUDA": "1",
        "FEDKERNELS_NO_EXT": "0",
        "NVCC_APPEND_FLAGS": "-Xptxas -v",
        "LIBRARY_PATH": str(folder / "stand-ins"),
    }
    if architectures is not None:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    output = run([sys.executable, "-c", BUILD], folder, environment)
    answer = run([sys.executable, "-c", LOAD, *map(str, stand_ins)], folder, environment)
    loaded = json.loads(answer.strip().splitlines()[-1])
    expected = registered(folder / "csrc")
    result = Rehearsal(
        nvcc=release,
        architectures=str(loaded["architectures"]),
        ops=sorted(expected & set(loaded["ops"])),
        figures=parse_ptxas(output),
    )
    missing = expected - set(result.ops)
    if missing:
        result.problems.append(f"not in the dispatcher: {', '.join(sorted(missing))}")
    if loaded["found at"] != str(folder / "fedkernels"):
        result.problems.append(f"another fedkernels was loaded: {loaded['found at']}")
    if loaded["why not"] is not None:
        result.problems.append(f"no CUDA kernels after the build: {loaded['why not']}")
    for library in (folder / "fedkernels").glob("*.so"):
        if str(folder).encode() in library.read_bytes():
            result.problems.append(f"{library.name} names a path of this machine")
    return result


def registered(sources: Path) -> set[str]:
    """The ops that `.cu` files register for CUDA, read off the sources."""
    block = re.compile(r"STABLE_TORCH_LIBRARY_IMPL\((\w+), CUDA, \w+\) *\{(.*?)\n?\}", re.DOTALL)
    return {
        f"{library}::{op}"
        for path in sources.rglob("*.cu")
        for library, body in block.findall(path.read_text())
        for op in re.findall(r'\.impl\(\s*"(\w+)"', body)
    }


def copy_sources(folder: Path, everything: bool) -> None:
    folder.mkdir(exist_ok=True)
    without = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    shutil.copytree(ROOT / "fedkernels", folder / "fedkernels", ignore=without)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "benchmarks").mkdir()  # setup.py looks for packages there
    for kernel in ("sound.cu", "sound.cuh"):
        shutil.copy(HERE / "kernels" / kernel, folder / "csrc")
    for source in [] if everything else (folder / "csrc").rglob("*.cpp"):
        if source.name != "host.cpp":
            source.unlink()


def make_stand_ins(folder: Path) -> list[Path]:
    folder.mkdir()
    source = folder / "stand_in.c"
    source.write_text(STAND_IN + "\n")
    made = []
    for name in LIBRARIES:
        run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", source.name, "-o", name],
            folder,
            dict(os.environ),
        )
        made.append(folder / name)
    return made


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    result = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = result.stdout.decode(errors="replace")
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{output[-8000:]}")
    return output


def parse_ptxas(output: str) -> dict[str, dict[str, Figures]]:
    """The figures in the output of `-Xptxas -v`."""
    found: dict[str, dict[str, Figures]] = {}
    mangled = architecture = ""
    stack: tuple[int, ...] = (0, 0, 0)
    entries = []
    for line in output.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            mangled, architecture = entry.groups()
            stack = (0, 0, 0)
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack = tuple(int(n) for n in frame.groups())
        elif (used := re.search(r"Used (\d+) registers", line)) and mangled:
            shared = re.search(r"(\d+) bytes smem", line)
            figures = Figures(int(used.group(1)), *stack, int(shared.group(1)) if shared else 0)
            entries.append((mangled, architecture, figures))
            mangled = ""
    names = demangle([name for name, _, _ in entries])
    for name, (_, architecture, figures) in zip(names, entries, strict=True):
        found.setdefault(name, {})[architecture] = figures
    return found


def demangle(names: list[str]) -> list[str]:
    """Names as in the source, without return type, parameters and our namespace."""
    if shutil.which("c++filt") is None or not names:
        return names
    answer = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return [short_name(name) for name in answer.stdout.splitlines()]


def short_name(name: str) -> str:
    """`void fedkernels::f<float, 128>(float const*)` -> `f<float, 128>`."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|fedkernels::", "", name)
    depth, end = 0, len(name)
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    name = re.sub(r"\((?:int|bool|long|unsigned int)\)", "", name[:end])
    return name.removeprefix("void ")


def compare(result: Rehearsal, record: dict) -> None:
    """Adds to `result` what is worse than the record, and what is only different."""
    same_release = record.get("nvcc") == result.nvcc
    if not same_release:
        result.notes.append(f"nvcc {result.nvcc}, the record is of {record.get('nvcc')}")
    kernels = record.get("kernels", {})
    for name, per_architecture in sorted(result.figures.items()):
        for architecture, figures in sorted(per_architecture.items()):
            listed = kernels.get(name, {}).get(architecture)
            known = Figures(*listed) if listed is not None else None
            allowed = known.spills if known is not None else 0
            text = f"{name} on {architecture}: "
            if figures.spills > allowed:
                problem = f"{text}spills {figures.spills} bytes, recorded {allowed}"
                (result.problems if same_release else result.notes).append(problem)
            if known is None:
                result.notes.append(f"{text}not recorded, {figures.registers} registers")
            elif figures.registers != known.registers:
                result.notes.append(
                    f"{text}{figures.registers} registers, recorded {known.registers}"
                )


def write_record(result: Rehearsal) -> None:
    """One line for each kernel and architecture: what changed is what a diff shows."""
    kernels = []
    for name, per_architecture in sorted(result.figures.items()):
        lines = [
            f'   "{a}": [{f.registers}, {f.stack}, {f.spill_stores}, {f.spill_loads}, {f.shared}]'
            for a, f in sorted(per_architecture.items())
        ]
        kernels.append(f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }")
    fields = '"registers", "stack", "spill_stores", "spill_loads", "shared"'
    RECORD.write_text(
        f'{{\n "nvcc": "{result.nvcc}",\n "fields": [{fields}],\n "kernels": {{\n'
        + ",\n".join(kernels)
        + "\n }\n}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the figures down")
    parser.add_argument("--all", action="store_true", help="build the .cpp files too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedkernels-cuda-") as folder:
        try:
            result = rehearse(Path(folder).resolve(), everything=options.all)
        except RuntimeError as error:
            print(f"cuda-check: {error}", file=sys.stderr)
            return 1
    if options.record:
        write_record(result)
    compare(result, json.loads(RECORD.read_text()))
    print(f"nvcc {result.nvcc}, built for {result.architectures}")
    print(f"CUDA kernels of {', '.join(result.ops)}")
    for name, per_architecture in sorted(result.figures.items()):
        registers = ", ".join(
            f"{f.registers} ({architecture}{f', {f.spills} bytes spilled' if f.spills else ''})"
            for architecture, f in sorted(per_architecture.items())
        )
        print(f"  {name}: registers {registers}")
    for note in result.notes:
        print(f"note: {note}")
    for problem in result.problems:
        print(f"cuda-check: {problem}", file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
