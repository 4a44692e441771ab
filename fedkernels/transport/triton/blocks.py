"""Blocks of the cost, from a matrix or from points, and one half-step over the blocks of a row.

Everything is written for an "own" side, whose entries a program holds, and an "other" side, along
which it walks: rows and columns exchanged, the same code does the other half-step. For points the
tile of products never leaves the chip. Points are centred beforehand (`points.py`), products are
faithful to float32, and each cell costs one multiply-add on top: exp2 takes fma(-C, s, w_j).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import log2_
from fedkernels._triton.points import products

MATRIX = tl.constexpr(-1)
SQEUCLIDEAN = tl.constexpr(0)
EUCLIDEAN = tl.constexpr(1)
COSINE = tl.constexpr(2)


@triton.jit
def metric_cost(dot, own_norm, other_norm, i, j, in_i, in_j, SOURCE: tl.constexpr):
    """C_ij from x_i . y_j; the norms are squares, and are not read for the cosine."""
    if SOURCE == COSINE:
        return tl.maximum(1.0 - dot, 0.0)
    else:
        own_square = tl.load(own_norm + i, mask=in_i, other=0.0)
        other_square = tl.load(other_norm + j, mask=in_j, other=0.0)
        square = tl.maximum(own_square[:, None] + other_square[None, :] - 2.0 * dot, 0.0)
        if SOURCE == EUCLIDEAN:
            return tl.sqrt_rn(square)
        else:
            return square


@triton.jit
def cost_block(
    own,
    other,
    own_norm,
    other_norm,
    i,
    j,
    in_i,
    in_j,
    own_stride,
    other_stride,
    D,
    SOURCE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """C_ij of a block, 0 outside. Pointers are those of the problem; `own` is the matrix itself
    where SOURCE is MATRIX (strides between own and between other entries), else points (count, D)
    with their norms."""
    if SOURCE == MATRIX:
        at = i.to(tl.int64)[:, None] * own_stride + j.to(tl.int64)[None, :] * other_stride
        return tl.load(own + at, mask=in_i[:, None] & in_j[None, :], other=0.0)
    else:
        dot = products(own, other, own, i, j, in_i, in_j, D, False, BI, BJ, BK, PRECISION)
        return metric_cost(dot, own_norm, other_norm, i, j, in_i, in_j, SOURCE)


@triton.jit
def plan_of(c, s, own, other, COLUMN: tl.constexpr):
    """exp2(fma(-C, s, u_i) + v_j), in this order on both sides."""
    if COLUMN:
        return tl.exp2(tl.fma(c, -s, other[None, :]) + own[:, None])
    else:
        return tl.exp2(tl.fma(c, -s, own[:, None]) + other[None, :])


@triton.jit
def transform_block(
    own,
    other,
    own_norm,
    other_norm,
    W,
    i,
    in_i,
    others,
    own_stride,
    other_stride,
    D,
    s,
    SOURCE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """log2 sum_j exp2(K_ij + w_j) of the own entries i, over all `others` entries."""
    largest = tl.full((BI,), float("-inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    for start in range(0, others, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < others
        w = tl.load(W + j, mask=in_j, other=float("-inf"))
        c = cost_block(
            own, other, own_norm, other_norm, i, j, in_i, in_j, own_stride, other_stride, D,
            SOURCE, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        x = tl.fma(c, -s, w[None, :])
        above = tl.maximum(largest, tl.max(x, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(x - base[:, None]), 1)
        largest = above
    return largest + log2_(tl.where(largest == float("-inf"), 1.0, total))
