"""Compiles what a call would launch, for an architecture that is not there, and reads the result.

The launches of a call are recorded on tensors of the CPU and compiled as the just-in-time compiler
would specialise them (dtypes, divisibility, ones), through a stand-in for the driver. Registers and
spills come from the machine code, by the tools that Triton's wheel brings.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MODULES = (
    "_triton.centre",
    "prototype.triton.assign",
    "prototype.triton.class_sum",
    "prototype.triton.cross_entropy",
    "prototype.triton.distance",
    "prototype.triton.gradient",
    "prototype.triton.prepare",
    "prototype.triton.softmax",
    "prototype.triton.sums",
    "prototype.triton.targets",
    "transport.triton.conditional",
    "transport.triton.points",
    "transport.triton.products",
    "transport.triton.sinkhorn",
    "transport.triton.solve",
)
# Shared memory that a block may have.
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}


class StandIn:
    """A driver that knows its target and nothing else."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: tuple[Any, ...]
    meta: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


@dataclass(frozen=True)
class Compiled:
    name: str
    registers: int
    spills: int
    shared: int
    scratch: int
    precisions: tuple[str, ...]


@contextlib.contextmanager
def _recording(into: list[Launch]) -> Iterator[None]:
    def record(kernel, programs, on, *arguments, num_warps, num_stages, **meta):
        assert programs >= 0
        options = {"num_warps": num_warps, "num_stages": num_stages}
        into.append(Launch(kernel, arguments, meta, options))

    modules = [importlib.import_module(f"fedkernels.{name}") for name in MODULES]
    kept = [module.launch for module in modules]
    try:
        for module in modules:
            module.launch = record
        yield
    finally:
        for module, launch in zip(modules, kept, strict=True):
            module.launch = launch


def launches(call: Callable[[], Any]) -> list[Launch]:
    """What `call` launches; one of each kernel and set of constants."""
    found: list[Launch] = []
    with _recording(found):
        call()
    seen = set()
    first = []
    for one in found:
        key = one.name, tuple(sorted((k, str(v)) for k, v in one.meta.items()))
        if key not in seen:
            seen.add(key)
            first.append(one)
    return first


_known: dict[Any, Compiled] = {}


def compiled(one: Launch, arch: int) -> Compiled:
    """What becomes of a launch; the same kernel, constants and kinds of arguments only once."""
    key = arch, one.name, *(_kind(a) for a in one.arguments), *sorted(map(str, one.meta.items()))
    if key not in _known:
        _known[key] = _compile(one, arch)
    return _known[key]


def _kind(argument: Any) -> Any:
    """What the just-in-time compiler specialises an argument by."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)


def _compile(one: Launch, arch: int) -> Compiled:
    triton.runtime.driver.set_active(StandIn(arch))
    mock = triton.runtime.jit.MockTensor
    arguments = [mock(a.dtype) if isinstance(a, torch.Tensor) else a for a in one.arguments]
    kernel = one.kernel.warmup(
        *arguments, **one.meta, **one.options, enable_fp_fusion=True, grid=(1,)
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        code = _run("nvdisasm", cubin)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Compiled(
        one.name,
        int(registers[1]),
        len(re.findall(r"\b(?:STL|LDL)\b", code)),
        kernel.metadata.shared,
        getattr(kernel.metadata, "global_scratch_size", 0),
        _precisions(kernel.asm["ttir"]),
    )


def _precisions(code: str) -> tuple[str, ...]:
    """Input precisions of the products; one that names none is exact."""
    products = [line for line in code.splitlines() if "tt.dot " in line]
    named = [re.search(r"inputPrecision = (\w+)", line) for line in products]
    return tuple(sorted({"ieee" if one is None else one[1] for one in named}))


def _run(tool: str, *arguments: Any) -> str:
    found = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return found.stdout
