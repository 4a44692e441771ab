"""Input generators: every size and memory layout that a kernel has to survive."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "ROWS", "random_tensor", "with_layout"]

# Row counts that break kernels: none, one, one below, at and above a vector, a prime above a block.
ROWS = (0, 1, 7, 8, 9, 67)

LAYOUTS = ("contiguous", "strided", "transposed", "padded", "expanded")


def random_tensor(
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
    std: float = 1.0,
    device: str | torch.device = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Normal values with deviation `std`, equal for equal (shape, seed) in every dtype and layout.

    The values are drawn in float64 on the CPU and rounded; "expanded" repeats the first row.

    >>> random_tensor((2, 3), layout="transposed").stride()
    (1, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), dtype=torch.float64, generator=generator) * std
    return with_layout(values.to(dtype), layout).to(device).requires_grad_(requires_grad)


def with_layout(values: Tensor, layout: str) -> Tensor:
    """The same values, laid out in memory as one of `LAYOUTS` says.

    contiguous   rows side by side
    strided      every second element of a buffer twice as wide
    transposed   the last two dimensions swapped in memory
    padded       rows of a wider buffer, beginning at an odd offset (no alignment)
    expanded     stride 0 over the first dimension (the first row stands for all: values change)

    Tensors with fewer than two dimensions have no transpose and no rows: "transposed" and
    "expanded" of a vector are contiguous; "expanded" needs at least one row. Gaps hold NaN, so that
    a kernel that reads beside the tensor is found out.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    values = values.contiguous()
    if layout == "contiguous" or values.dim() == 0:
        return values
    if layout == "strided":
        buffer = _nan((*values.shape, 2), values)
        buffer[..., 0] = values
        return buffer[..., 0]
    if layout == "padded":
        width = values.shape[-1] + 5
        flat = _nan((math.prod(values.shape[:-1]) * width + 3,), values)
        strides = [1]
        for size in reversed(values.shape[1:]):
            strides.insert(0, strides[0] * (size if len(strides) > 1 else width))
        view = flat.as_strided(values.shape, strides, 3)
        view.copy_(values)
        return view
    if values.dim() < 2:
        return values
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    return values[:1].expand(values.shape) if values.shape[0] > 0 else values


def _nan(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.is_floating_point():
        return torch.full(shape, math.nan, dtype=like.dtype, device=like.device)
    return torch.full(shape, torch.iinfo(like.dtype).max, dtype=like.dtype, device=like.device)
