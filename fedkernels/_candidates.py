"""The backends of a family with compiled and Triton kernels, and why one cannot run a call."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from fedkernels import _extension
from fedkernels._backend import Candidate

__all__ = ["candidates"]

_FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def candidates(op: str) -> tuple[Candidate, ...]:
    """The backends of ``fedkernels::<op>``, in the order in which "auto" tries them.

    CPU tensors: the compiled kernel before Triton's interpreter, which is for tests.
    """
    built = {device: _extension._registers(op, device) for device in ("CPU", "CUDA")}

    def cuda(x: Tensor) -> str | None:
        if x.device.type != "cuda":
            return f"the tensors are on {x.device}, the kernel runs on CUDA"
        if not _extension.is_built():
            return f"not built: {_extension.why_not_built()}"
        if not built["CUDA"]:
            return "the extension was built without CUDA"
        return _dtype_why_not(x, double=False)

    def cpu(x: Tensor) -> str | None:
        if x.device.type != "cpu":
            return f"the tensors are on {x.device}, the kernel runs on the CPU"
        if not _extension.is_built():
            return f"not built: {_extension.why_not_built()}"
        if not built["CPU"]:
            return "the extension was built without it"
        return _dtype_why_not(x, double=True)

    return (
        Candidate("cuda", cuda),
        Candidate("cpu", cpu),
        Candidate("triton", _triton_why_not),
        Candidate("reference", _reference_why_not),
    )


def _dtype_why_not(x: Tensor, double: bool) -> str | None:
    if x.dtype not in _FLOATS:
        return f"dtype {x.dtype} is not a floating type of the kernel"
    if x.dtype == torch.float64 and not double:
        return "float64 runs on cpu and reference"
    return None


def _triton_why_not(x: Tensor) -> str | None:
    if x.device.type != "cuda" and not (x.device.type == "cpu" and _INTERPRETED):
        return f"the tensors are on {x.device}: CUDA, or the CPU where TRITON_INTERPRET=1 is set"
    if not _HAS_TRITON:
        return "triton is not installed"
    return _dtype_why_not(x, double=False)


def _reference_why_not(x: Tensor) -> str | None:
    return None
