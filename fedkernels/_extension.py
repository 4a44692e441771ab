"""Loads the compiled ops once, when `fedkernels` is imported, and keeps the reason if it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import torch

__all__ = ["has_cuda", "is_built", "why_not_built"]

_FOLDER = Path(__file__).resolve().parent


def _recorded_reason() -> str:
    """What setup.py's build_ext wrote down when it built nothing."""
    try:
        outcome = json.loads((_FOLDER / "_build.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was never built here (`python setup.py build_ext --inplace` builds it)"
    except (OSError, ValueError) as error:
        return f"fedkernels/_build.json cannot be read: {error}"
    reason = outcome.get("reason")
    if reason is None:
        return "it was built, but fedkernels/_C*.so is gone"
    return str(reason)


def _load() -> str | None:
    """Loads fedkernels/_C*.so; returns why that is not possible, or None."""
    libraries = sorted(_FOLDER.glob("_C*.so"))
    if not libraries:
        return _recorded_reason()
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError as error:
        # A torch that is older than the ABI, or another C++ runtime: the linker's message says.
        return f"{libraries[0].name} cannot be loaded: {str(error).splitlines()[0]}"
    return None


def _registers(op: str, device: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"fedkernels::{op}", device)
    except RuntimeError:  # nobody knows an op of that name
        return False


_WHY_NOT = _load()
_HAS_CUDA = _WHY_NOT is None and _registers("sinkhorn_forward", "CUDA")


def is_built() -> bool:
    """Whether the compiled ops are loaded in this process."""
    return _WHY_NOT is None


def why_not_built() -> str | None:
    """Why the compiled ops are missing, in one line; None when they are loaded."""
    return _WHY_NOT


def has_cuda() -> bool:
    """Whether the compiled ops hold CUDA kernels; asks the dispatcher, touches no device."""
    return _HAS_CUDA
