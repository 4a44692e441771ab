"""What the Functions of the family share.

Two forms of each. The ctx form runs in eager mode and under Dynamo; its twin with ``setup_context``
supports torch.func, costs 20-30 us more a call, and runs only while functorch transforms are
active. Without a gradient to take neither runs. The ops run below autograd, with autocast off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._second_derivative import once, refuse_compiled_transforms

__all__ = ["attach", "finish", "needs"]

_NO_SECOND = (
    "fedkernels: the compiled kernels have no second derivative; "
    'pass backend="reference" to differentiate twice'
)
_WAY_OUT = ' on this backend; compile without the transform, or pass backend="reference"'


def needs(*tensors: Tensor | None) -> int:
    """The bits of the tensors that require a gradient, in order."""
    if not torch.is_grad_enabled():
        return 0
    return sum(1 << i for i, t in enumerate(tensors) if t is not None and t.requires_grad)


def attach(
    name: str, run: Callable[..., Any], forms: tuple[Any, Any], need: int, *arguments: Any
) -> Any:
    """run(*arguments) with its gradient; forms are the two Functions around it."""
    first = arguments[0]
    with without_autocast(first):
        if torch._C._are_functorch_transforms_active():
            refuse_compiled_transforms(name, _WAY_OUT)
            return forms[1].apply(*arguments)
        return forms[0].apply(*arguments) if need else run(*arguments)


def finish(
    backward: Callable[[], tuple[Tensor | None, ...]], like: Tensor, *sources: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients, tied to their sources so that a second derivative raises."""
    if not torch.is_grad_enabled():
        with without_autocast(like):
            return backward()
    with torch.no_grad(), without_autocast(like):
        found = backward()
    return once(_NO_SECOND, found, *sources)
