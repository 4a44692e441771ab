"""Kernels compute in the dtype that their family documents, whatever autocast would make of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turns autocast off for the device of ``tensor``, where it is on."""
    # The meta device has no autocast and refuses the question.
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
