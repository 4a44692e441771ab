"""`python -m fedkernels.info`: what was built, what runs here, and why something does not.

The first thing to put into a bug report. Needs torch only. Families are found, not listed: every
`fedkernels/<family>/api.py` has `OPS`, the candidates of each of its ops.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
import sys
from pathlib import Path

import torch

import fedkernels
from fedkernels._backend import Candidate, refusals
from fedkernels._extension import architectures, is_built, why_no_cuda, why_not_built

__all__ = ["capabilities", "collect", "main", "operations", "render"]

_CAPABILITIES = ("plain", "avx2", "avx512")  # weakest first
_PACKAGES = ("numpy", "triton", "transformers", "peft", "safetensors", "scikit-learn")


def capabilities() -> tuple[str, ...]:
    """The instruction sets that the compiled ops can be forced to here, weakest first.

    Empty if the extension is not built.
    """
    host = _host()
    if host is None:
        return ()
    return _CAPABILITIES[: _CAPABILITIES.index(host.best_capability()) + 1]


def operations() -> dict[str, tuple[Candidate, ...]]:
    """Every public op that has backends, with its candidates in the order in which `auto` tries."""
    found: dict[str, tuple[Candidate, ...]] = {}
    for module in pkgutil.iter_modules(fedkernels.__path__):
        name = f"fedkernels.{module.name}.api"
        if module.ispkg and importlib.util.find_spec(name) is not None:
            found.update(importlib.import_module(name).OPS)
    return found


def collect() -> dict[str, dict[str, str]]:
    """Everything that `render` prints: section -> name -> value."""
    return {
        "fedkernels": {
            "version": fedkernels.__version__,
            "found at": str(Path(fedkernels.__file__).parent),
            "python_api": _location("python_api"),
            "benchmarks": _location("fedkernels_benchmarks"),
        },
        "versions": _versions(),
        "compiled ops": _build(),
        "threads": {
            "torch": str(torch.get_num_threads()),
            "processors": str(os.cpu_count()),
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FEDKERNELS_") or name in ("OMP_NUM_THREADS", "TRITON_INTERPRET")
        },
        **{f"backends ({device})": _backends(device) for device in _devices()},
    }


def render(sections: dict[str, dict[str, str]]) -> str:
    """The sections as plain text.

    >>> print(render({"threads": {"torch": "2"}}))
    threads
      torch  2
    """
    lines: list[str] = []
    for title, values in sections.items():
        width = max((len(name) for name in values), default=0)
        lines.append(title)
        lines.extend(f"  {name:<{width}}  {value}" for name, value in values.items())
        if not values:
            lines.append("  none set")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints everything, or with `--capabilities` the instruction sets alone, on one line."""
    parser = argparse.ArgumentParser(prog="python -m fedkernels.info", description=__doc__)
    parser.add_argument(
        "--capabilities",
        action="store_true",
        help="print only what FEDKERNELS_CPU_CAPABILITY can be set to here",
    )
    options = parser.parse_args(arguments)
    print(" ".join(capabilities()) if options.capabilities else render(collect()))
    return 0


def _host():
    """fedkernels._host, or None where the extension is not built."""
    try:
        return importlib.import_module("fedkernels._host")
    except ImportError:
        return None


def _location(package: str) -> str:
    # Asked for, not imported: a folder of that name in the working folder would shadow ours.
    spec = importlib.util.find_spec(package)
    if spec is None:
        return "not found"
    if spec.origin is not None:
        return str(Path(spec.origin).parent)
    return f"a folder without __init__.py: {', '.join(spec.submodule_search_locations or ())}"


def _versions() -> dict[str, str]:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": f"{torch.__version__} ({cuda})",
    }
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _build() -> dict[str, str]:
    host = _host()
    if not is_built() or host is None:
        why = why_not_built() or "fedkernels._host is missing"
        return {"built": f"no: {why}", "runs": "the reference in plain PyTorch"}
    built = host.build_info()
    try:
        running = host.capability()
    except ValueError as error:
        running = f"none, {error}"
    forced = " (forced)" if os.environ.get("FEDKERNELS_CPU_CAPABILITY") else ""
    return {
        "built": f"yes, by {built['compiler']}, C++ {built['standard']}",
        "capability": running + forced,
        "best here": host.best_capability(),
        "cuda": _cuda(),
    }


def _cuda() -> str:
    reason = why_no_cuda()
    if reason is not None:
        return f"not built: {reason}"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor})")
    return f"built for {architectures()}; GPUs here: {', '.join(names) or 'none'}"


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _backends(device: str) -> dict[str, str]:
    """For each op, every candidate's answer to a float32 tensor on that device."""
    probe = torch.empty(0, device=device)
    return {
        op: "; ".join(
            f"{name}: {'runs' if reason is None else reason}"
            for name, reason in refusals(candidates, probe).items()
        )
        for op, candidates in operations().items()
    }


if __name__ == "__main__":
    sys.exit(main())
