"""Uninitialised memory filled with NaN: a kernel that forgets to write an element is found out.

torch itself can fill what `empty` returns (NaN; the largest value for integers). That reaches
`aten::empty` below the Python functions too: what a C++ op allocates through LibTorch's stable ABI.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["poisoned_empty"]

_SETTINGS: Any = torch.utils.deterministic  # a module class without type information


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the block, new uninitialised tensors hold NaN.

    torch fills them in its deterministic mode only, so that mode is on within the block (an op
    without a deterministic form runs all the same). The state before is restored.

    >>> with poisoned_empty():
    ...     torch.empty(2)
    tensor([nan, nan])
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = _SETTINGS.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _SETTINGS.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implement.*")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        _SETTINGS.fill_uninitialized_memory = filling
