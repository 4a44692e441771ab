"""The mean of the finite points of a problem: distances are formed from points centred on it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton.arithmetic import is_finite, narrow
from fedkernels._triton.launching import Blocks, launch, padded
from fedkernels._triton.points import load_rows

__all__ = ["centre_of"]


@triton.jit
def finite_rows(POINTS, FINITE, count, D, blocks, BI: tl.constexpr, BK: tl.constexpr):
    """FINITE (B, count): 1 for a point whose values are all finite, else 0."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BI + tl.arange(0, BI)
    in_i = i < count
    bad = tl.zeros((BI,), tl.int32)
    for start in range(0, D, BK):
        x = load_rows(POINTS + problem * count * D, i, in_i, start + tl.arange(0, BK), D)
        bad += tl.sum(tl.where(is_finite(x), 0, 1), 1)
    tl.store(FINITE + problem * count + i, tl.where(bad == 0, 1, 0), mask=in_i)


@triton.jit
def centre_of_finite(
    X, POINTS, FINITE, CENTRE, count, D, blocks, BI: tl.constexpr, BK: tl.constexpr
):
    """CENTRE (B, D): the mean of the finite points, summed in double, rounded to X's dtype;
    0 where that dtype cannot hold it."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BK + tl.arange(0, BK)
    total = tl.zeros((BK,), tl.float64)
    used = tl.zeros((BI,), tl.int32)
    for start in range(0, count, BI):
        i = start + tl.arange(0, BI)
        use = tl.load(FINITE + problem * count + i, mask=i < count, other=0)
        x = load_rows(POINTS + problem * count * D, i, use != 0, d, D)
        total += tl.sum(x.to(tl.float64), 0)
        used += use
    centre = (total / tl.maximum(tl.sum(used, 0), 1).to(tl.float64)).to(tl.float32)
    centre = narrow(centre, X.dtype.element_ty).to(tl.float32)
    tl.store(CENTRE + problem * D + d, tl.where(is_finite(centre), centre, 0.0), mask=d < D)


def centre_of(x: Tensor, points: Tensor, blocks: Blocks) -> Tensor:
    """(B, D) float32: the mean of the finite points (B, M, D), rounded to x's dtype."""
    batch, count, D = points.shape
    BK = padded(D, blocks.BK)
    options = {"BI": blocks.BI, "BK": BK, "num_warps": blocks.warps, "num_stages": blocks.stages}
    finite = points.new_empty(batch, count, dtype=torch.int32)
    centre = points.new_empty(batch, D)
    rows, columns = -(-count // blocks.BI), -(-D // BK)
    launch(finite_rows, batch * rows, x, points, finite, count, D, rows, **options)
    launch(
        centre_of_finite, batch * columns, x, x, points, finite, centre, count, D, columns,
        **options,
    )  # fmt: skip
    return centre
