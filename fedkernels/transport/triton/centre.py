"""Points as the metric reads them: centred, or of length 1, with norms; NaN are counted."""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite
from fedkernels.transport.triton.blocks import COSINE
from fedkernels.transport.triton.prepare import size_of


@triton.jit
def add_rows(POINTS, count, d, D, BI: tl.constexpr, BK: tl.constexpr):
    total = tl.zeros((BI, BK), tl.float64)
    for start in range(0, count, BI):
        i = start + tl.arange(0, BI)
        at = i.to(tl.int64)[:, None] * D + d[None, :]
        inside = (i < count)[:, None] & (d < D)[None, :]
        total += tl.load(POINTS + at, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def centre_of_points(
    X, Y, SIZES, CENTRE, n, m, x_stride, y_stride, D, blocks,
    HAS_SIZES: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """CENTRE (B, D): the mean of all points of a problem, summed in double."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BK + tl.arange(0, BK)
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    total = add_rows(X + problem * x_stride, rows, d, D, BI, BK)
    total += add_rows(Y + problem * y_stride, columns, d, D, BI, BK)
    count = tl.maximum(rows + columns, 1).to(tl.float64)
    tl.store(CENTRE + problem * D + d, (total / count).to(tl.float32), mask=d < D)


@triton.jit
def centre_points(
    X, SIZES, CENTRE, OUT, NORM, BAD, n, x_stride, D, blocks, bad_stride,
    SIDE: tl.constexpr, HAS_SIZES: tl.constexpr, SOURCE: tl.constexpr, BI: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """A block of points: x - centre and its squared norm; for the cosine x / |x| and |x|.

    BAD: how many entries, or squares of the norm, are not finite.
    """
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    if HAS_SIZES:
        count = tl.load(SIZES + problem * 2 + SIDE).to(tl.int32)
    else:
        count = (problem * 0).to(tl.int32) + n
    i = block * BI + tl.arange(0, BI)
    in_i = i < count
    points = X + problem * x_stride
    squares = tl.zeros((BI,), tl.float64)
    bad = tl.zeros((BI,), tl.int32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        inside = in_i[:, None] & (d < D)[None, :]
        x = tl.load(points + i.to(tl.int64)[:, None] * D + d[None, :], mask=inside, other=0.0)
        bad += tl.sum(tl.where(is_finite(x), 0, 1), 1)
        if SOURCE != COSINE:
            centre = tl.load(CENTRE + problem * D + d, mask=d < D, other=0.0)
            x = tl.where(inside, x - centre[None, :], 0.0)
            at = (problem * n + i)[:, None] * D + d[None, :]
            tl.store(OUT + at, x, mask=inside)
        wide = x.to(tl.float64)
        squares += tl.sum(wide * wide, 1)
    if SOURCE == COSINE:
        length = tl.sqrt(squares)
        norm = length.to(tl.float32)
        divisor = tl.where(length == 0.0, 1.0, length)
        for start in range(0, D, BK):
            d = start + tl.arange(0, BK)
            inside = in_i[:, None] & (d < D)[None, :]
            x = tl.load(points + i.to(tl.int64)[:, None] * D + d[None, :], mask=inside, other=0.0)
            x = (x.to(tl.float64) / divisor[:, None]).to(tl.float32)
            at = (problem * n + i)[:, None] * D + d[None, :]
            tl.store(OUT + at, x, mask=inside)
    else:
        norm = squares.to(tl.float32)
        bad += tl.where(is_finite(norm), 0, 1)
    tl.store(NORM + problem * n + i, norm, mask=in_i)
    tl.store(BAD + problem * bad_stride + block, tl.sum(bad, 0))
