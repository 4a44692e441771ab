"""How a Function without a second derivative refuses one, instead of answering with zeros.

`once_differentiable` gave a silent 0 under `torch.func`, and a compiled `func.grad` over a Function
computed wrong numbers. So a `backward` that runs under `create_graph` passes its results through a
second Function, whose own backward raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["once", "refuse_compiled_transforms"]


def once(
    message: str, grads: tuple[Tensor | None, ...], *sources: Tensor | None
) -> tuple[Tensor | None, ...]:
    """``grads`` as they are, tied to ``sources`` so that a second derivative raises ``message``."""
    present = [i for i, g in enumerate(grads) if g is not None]
    given = [s for s in sources if s is not None]
    tied = _Refuse.apply(message, len(present), *(grads[i] for i in present), *given)
    result = list(grads)
    for i, value in zip(present, tied, strict=True):
        result[i] = value
    return tuple(result)


def refuse_compiled_transforms(op: str, way_out: str) -> None:
    """Raises while torch.compile traces; called where torch.func transforms are active."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: torch.func transforms inside torch.compile are not supported{way_out}"
        )


class _Refuse(torch.autograd.Function):
    """Passes gradients on; raises if anyone differentiates through them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(ctx.message)
