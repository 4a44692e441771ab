"""Defines one op twice: for the compiled kernels, and for Triton's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

__all__ = ["bound", "define"]


def define(family: str, name: str, schema: str, fake: Callable[..., Any]) -> None:
    """``fedkernels::<name>`` and ``fedkernels::<name>_triton``, with the same fake.

    The Triton op runs ``fedkernels.<family>.triton.<name>``, imported when it is first called:
    importing fedkernels must not import triton. It is there for CPU tensors too, since the
    interpreter takes them.
    """
    for suffix in ("", "_triton"):
        torch.library.define(f"fedkernels::{name}{suffix}", schema)
        torch.library.register_fake(f"fedkernels::{name}{suffix}", fake)

    def launch(*arguments: Any) -> Any:
        return getattr(import_module(f"fedkernels.{family}.triton"), name)(*arguments)

    torch.library.impl(f"fedkernels::{name}_triton", ("cpu", "cuda"), launch)


def bound(names: tuple[str, ...], suffix: str) -> dict[str, Any]:
    """Each op's only overload, by its name without the suffix."""
    return {name: getattr(torch.ops.fedkernels, name + suffix).default for name in names}
