"""Loads the compiled ops once, when `fedkernels` is imported, and keeps the reason if it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import torch

__all__ = ["architectures", "has_cuda", "is_built", "why_no_cuda", "why_not_built"]

_FOLDER = Path(__file__).resolve().parent


def _outcome() -> dict[str, object] | str:
    """What setup.py's build_ext wrote down, or why that is not known."""
    try:
        outcome: dict[str, object] = json.loads(
            (_FOLDER / "_build.json").read_text(encoding="utf-8")
        )
        return outcome
    except FileNotFoundError:
        return "it was never built here (`python setup.py build_ext --inplace` builds it)"
    except (OSError, ValueError) as error:
        return f"fedkernels/_build.json cannot be read: {error}"


def _recorded_reason() -> str:
    """Why build_ext built nothing."""
    outcome = _outcome()
    if isinstance(outcome, str):
        return outcome
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


def _recorded_cuda() -> str | None:
    """Why build_ext left the CUDA kernels out, or None."""
    outcome = _outcome()
    if isinstance(outcome, str):
        return outcome
    if outcome.get("cuda") is None:
        return str(outcome.get("cuda_reason") or "they were not built")
    return None


_WHY_NOT = _load()
_WHY_NO_CUDA = _recorded_cuda() if _WHY_NOT is None else _WHY_NOT


def is_built() -> bool:
    """Whether the compiled ops are loaded in this process."""
    return _WHY_NOT is None


def why_not_built() -> str | None:
    """Why the compiled ops are missing, in one line; None when they are loaded."""
    return _WHY_NOT


def has_cuda() -> bool:
    """Whether the compiled ops are loaded in this process and were built with CUDA kernels.

    Which op has one, the dispatcher knows; whether a GPU is there, torch.
    """
    return _WHY_NO_CUDA is None


def why_no_cuda() -> str | None:
    """Why there are no CUDA kernels in this process, in one line; None when there are."""
    return _WHY_NO_CUDA


def architectures() -> str | None:
    """The GPU architectures that the CUDA kernels were built for, as torch lists them."""
    outcome = _outcome()
    return None if isinstance(outcome, str) or not has_cuda() else str(outcome["cuda"])
