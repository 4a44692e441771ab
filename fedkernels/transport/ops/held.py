"""What refuses a gradient where Python cannot: in a compiled graph and under torch.func.

Both hand a zero gradient to every output that nobody differentiated, so the refusal has to look at
the numbers, when they are there.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["held_gradient"]

torch.library.define("fedkernels::held_gradient", "(Tensor grad, str message) -> Tensor")


@torch.library.register_fake("fedkernels::held_gradient")
def _(grad, message):
    return grad.new_empty(grad.shape[:1])


@torch.library.impl("fedkernels::held_gradient", "cpu")
def _(grad: Tensor, message: str) -> Tensor:
    """Zeros (B,); raises if any gradient is not 0."""
    if bool((grad != 0).any()):
        raise RuntimeError(message)
    return grad.new_zeros(grad.shape[:1])


@torch.library.impl("fedkernels::held_gradient", "cuda")
def _(grad: Tensor, message: str) -> Tensor:
    """NaN for each problem whose gradient is not 0: raising would have to wait for the device."""
    asked = (grad != 0).reshape(grad.shape[0], -1).any(1)
    return grad.new_zeros(grad.shape[:1]).masked_fill(asked, float("nan"))


held_gradient = torch.ops.fedkernels.held_gradient.default
