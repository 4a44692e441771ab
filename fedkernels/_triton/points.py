"""Tiles of points (count, D): loads that widen, and products of centred points."""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton.arithmetic import dot_

__all__ = ["load_rows", "products"]


@triton.jit
def load_rows(POINTS, i, in_i, d, D):
    """A tile of points in float32, 0 outside."""
    at = i.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(POINTS + at, mask=in_i[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def products(
    own, other, CENTRE, i, j, in_i, in_j, D, CENTRED: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x_i . y_j of a block, (BI, BJ); where CENTRED, (x_i - centre) . y_j."""
    total = tl.zeros((BI, BJ), tl.float32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        in_d = d < D
        x = load_rows(own, i, in_i, d, D)
        if CENTRED:
            x = x - tl.load(CENTRE + d, mask=in_d, other=0.0)[None, :]
        y = tl.load(
            other + j.to(tl.int64)[None, :] * D + d[:, None],
            mask=in_j[None, :] & in_d[:, None],
            other=0.0,
        )
        total = dot_(x, y, total, PRECISION)
    return total
