"""The plan, its products and its gradients to points: blocks of exp2(fma(-C, s, u_i) + v_j)."""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import dot_
from fedkernels._triton.points import products
from fedkernels.transport.triton.blocks import (
    COSINE,
    EUCLIDEAN,
    cost_block,
    metric_cost,
    plan_of,
)
from fedkernels.transport.triton.masses import scale_of
from fedkernels.transport.triton.prepare import size_of


@triton.jit(do_not_specialize=["total"])
def plan_matrix(
    C, EPS, SIZES, U, V, SCALE, OUT, total, n, m, blocks, cost_stride, eps_stride,
    HAS_SIZES: tl.constexpr, HAS_SCALE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Rows of all problems one after the other, so that small problems fill a block too."""
    row = (tl.program_id(0) // blocks).to(tl.int64) * BI + tl.arange(0, BI)
    j = (tl.program_id(0) % blocks) * BJ + tl.arange(0, BJ)
    inside_row = row < total
    problem = row // n
    i = row - problem * n
    inside = inside_row[:, None] & (j < m)[None, :]
    valid = inside
    if HAS_SIZES:
        rows = tl.load(SIZES + problem * 2, mask=inside_row, other=0)
        columns = tl.load(SIZES + problem * 2 + 1, mask=inside_row, other=0)
        valid = valid & (i < rows)[:, None] & (j[None, :] < columns[:, None])
    s = scale_of(tl.load(EPS + problem * eps_stride, mask=inside_row, other=1.0))
    factor = s * 0.0 + 1.0
    if HAS_SCALE:
        factor = tl.load(SCALE + problem, mask=inside_row, other=0.0)
        valid = valid & (factor != 0.0)[:, None]
    u = tl.load(U + row, mask=inside_row, other=float("-inf"))
    v = tl.load(V + problem[:, None] * m + j[None, :], mask=valid, other=float("-inf"))
    at = problem[:, None] * cost_stride + i[:, None] * m + j[None, :]
    c = tl.load(C + at, mask=valid, other=0.0)
    plan = tl.exp2(tl.fma(c, -s[:, None], u[:, None]) + v)
    if HAS_SCALE:
        plan = factor[:, None] * plan
    tl.store(OUT + row[:, None] * m + j[None, :], tl.where(valid, plan, 0.0), mask=inside)


@triton.jit
def plan_points(
    X, Y, NX, NY, EPS, SIZES, U, V, SCALE, OUT, n, m, x_stride, y_stride, own_stride, other_stride,
    D, row_blocks, blocks, eps_stride, HAS_SIZES: tl.constexpr, HAS_SCALE: tl.constexpr,
    SOURCE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of the plan of one problem."""
    program = tl.program_id(0)
    problem = (program // (row_blocks * blocks)).to(tl.int64)
    i = (program // blocks % row_blocks) * BI + tl.arange(0, BI)
    j = (program % blocks) * BJ + tl.arange(0, BJ)
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    in_i = i < rows
    in_j = j < columns
    valid = in_i[:, None] & in_j[None, :]
    at = (problem * n + i)[:, None] * m + j[None, :]
    inside = (i < n)[:, None] & (j < m)[None, :]
    plan = tl.zeros((BI, BJ), tl.float32)
    factor = (problem * 0).to(tl.float32) + 1.0
    if HAS_SCALE:
        factor = tl.load(SCALE + problem)
    if factor != 0.0:
        s = scale_of(tl.load(EPS + problem * eps_stride))
        u = tl.load(U + problem * n + i, mask=in_i, other=float("-inf"))
        v = tl.load(V + problem * m + j, mask=in_j, other=float("-inf"))
        c = cost_block(
            X + problem * x_stride, Y + problem * y_stride, NX + problem * n, NY + problem * m,
            i, j, in_i, in_j, own_stride, other_stride, D, SOURCE, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        plan = tl.where(valid, plan_of(c, s, u, v, False), 0.0)
        if HAS_SCALE:
            plan = tl.where(valid, factor * plan, 0.0)
    tl.store(OUT + at, plan, mask=inside)


@triton.jit
def apply_plan(
    X, Y, NX, NY, EPS, SIZES, OWN, OTHER, VALUES, OUT, n, m, width, x_stride, y_stride, own_stride,
    other_stride, D, row_blocks, blocks, eps_stride, COLUMN: tl.constexpr,
    HAS_SIZES: tl.constexpr, SOURCE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of P V, or with COLUMN of P^T V: X, n, OWN are then the columns'."""
    program = tl.program_id(0)
    problem = (program // (row_blocks * blocks)).to(tl.int64)
    i = (program // blocks % row_blocks) * BI + tl.arange(0, BI)
    d = (program % blocks) * BD + tl.arange(0, BD)
    if COLUMN:
        others, count = size_of(SIZES, problem, m, n, HAS_SIZES)
    else:
        count, others = size_of(SIZES, problem, n, m, HAS_SIZES)
    in_i = i < count
    if tl.sum(in_i.to(tl.int32), 0) == 0:
        return
    s = scale_of(tl.load(EPS + problem * eps_stride))
    own = tl.load(OWN + problem * n + i, mask=in_i, other=float("-inf"))
    total = tl.zeros((BI, BD), tl.float32)
    for start in range(0, others, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < others
        other = tl.load(OTHER + problem * m + j, mask=in_j, other=float("-inf"))
        c = cost_block(
            X + problem * x_stride, Y + problem * y_stride, NX + problem * n, NY + problem * m,
            i, j, in_i, in_j, own_stride, other_stride, D, SOURCE, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        plan = plan_of(c, s, own, other, COLUMN)
        at = (problem * m + j)[:, None] * width + d[None, :]
        values = tl.load(VALUES + at, mask=in_j[:, None] & (d < width)[None, :], other=0.0)
        if BD == 1:
            total += tl.sum(plan * tl.reshape(values, (1, BJ)), 1)[:, None]
        else:
            total = dot_(plan, values, total, PRECISION)
    at = (problem * n + i)[:, None] * width + d[None, :]
    tl.store(OUT + at, total, mask=in_i[:, None] & (d < width)[None, :])


@triton.jit
def any_nonzero(VECTOR, count, CHUNK: tl.constexpr):
    found = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, count, CHUNK):
        k = start + tl.arange(0, CHUNK)
        found += (tl.load(VECTOR + k, mask=k < count, other=0.0) != 0.0).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def points_backward(
    X, Y, NX, NY, EPS, SIZES, OWN, OTHER, W0, W1, ALPHA, BETA, OUT, n, m, x_stride, y_stride,
    own_stride, other_stride, D, row_blocks, blocks, eps_stride, COLUMN: tl.constexpr,
    HAS_SIZES: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr,
    SOURCE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A block (BI, BD) of dx_i = sum_j W_ij dC_ij/dx_i, W = P (w0 + w1 C + alpha_i + beta_j).

    ALPHA belongs to the own side, BETA to the other one. In terms of centred points dx_i is
    2 (sum_j W_ij x_i - sum_j W_ij y_j); a problem without weights gets zeros, whatever it holds.
    """
    program = tl.program_id(0)
    problem = (program // (row_blocks * blocks)).to(tl.int64)
    i = (program // blocks % row_blocks) * BI + tl.arange(0, BI)
    d = (program % blocks) * BD + tl.arange(0, BD)
    if COLUMN:
        others, count = size_of(SIZES, problem, m, n, HAS_SIZES)
    else:
        count, others = size_of(SIZES, problem, n, m, HAS_SIZES)
    in_i = i < count
    in_d = d < D
    if tl.sum(in_i.to(tl.int32), 0) == 0:
        return
    at_own = (problem * n + i)[:, None] * D + d[None, :]
    inside = in_i[:, None] & in_d[None, :]
    w0 = tl.load(W0 + problem)
    w1 = tl.load(W1 + problem)
    asked = (w0 != 0.0).to(tl.int32) + (w1 != 0.0).to(tl.int32)
    if asked == 0:
        if HAS_ALPHA:
            asked += any_nonzero(ALPHA + problem * n, count, CHUNK)
        if HAS_BETA:
            asked += any_nonzero(BETA + problem * m, others, CHUNK)
    if asked == 0:
        tl.store(OUT + at_own, tl.zeros((BI, BD), tl.float32), mask=inside)
        return

    x = X + problem * x_stride
    y = Y + problem * y_stride
    s = scale_of(tl.load(EPS + problem * eps_stride))
    own = tl.load(OWN + problem * n + i, mask=in_i, other=float("-inf"))
    own_weight = tl.zeros((BI,), tl.float32)
    if HAS_ALPHA:
        own_weight = tl.load(ALPHA + problem * n + i, mask=in_i, other=0.0)
    pulled = tl.zeros((BI, BD), tl.float32)
    weight = tl.zeros((BI,), tl.float32)
    for start in range(0, others, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < others
        other = tl.load(OTHER + problem * m + j, mask=in_j, other=float("-inf"))
        dot = products(x, y, x, i, j, in_i, in_j, D, False, BI, BJ, BK, PRECISION)
        c = metric_cost(dot, NX + problem * n, NY + problem * m, i, j, in_i, in_j, SOURCE)
        w = w0 + w1 * c + own_weight[:, None]
        if HAS_BETA:
            w += tl.load(BETA + problem * m + j, mask=in_j, other=0.0)[None, :]
        w *= plan_of(c, s, own, other, COLUMN)
        w = tl.where(in_i[:, None] & in_j[None, :], w, 0.0)
        if SOURCE == EUCLIDEAN:
            w = tl.where(c > 0.0, w / tl.where(c > 0.0, c, 1.0), 0.0)
        if SOURCE == COSINE:
            weight += tl.sum(w * dot, 1)
        else:
            weight += tl.sum(w, 1)
        at = j.to(tl.int64)[:, None] * D + d[None, :]
        points = tl.load(y + at, mask=in_j[:, None] & in_d[None, :], other=0.0)
        pulled = dot_(w, points, pulled, PRECISION)
    at = i.to(tl.int64)[:, None] * D + d[None, :]
    points = tl.load(x + at, mask=inside, other=0.0)
    gradient = weight[:, None] * points - pulled
    if SOURCE == COSINE:
        length = tl.load(NX + problem * n + i, mask=in_i, other=0.0)
        some = (length > 0.0)[:, None]
        gradient = tl.where(some, gradient / tl.where(some, length[:, None], 1.0), 0.0)
    elif SOURCE != EUCLIDEAN:
        gradient = 2.0 * gradient
    tl.store(OUT + at_own, gradient, mask=inside)
