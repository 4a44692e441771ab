"""What follows the iterations of the streaming kernels: the plan's sums, potentials, value, status.

`finish_side` walks over the plan once for each side, `finish` adds its blocks' sums in order.
SUMS holds four doubles for a block of rows (value, mass, linear cost, error), PARTS one for a block
of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite
from fedkernels.transport.triton.blocks import cost_block, plan_of, transform_block
from fedkernels.transport.triton.masses import (
    INFEASIBLE,
    MAX_ITER,
    NON_FINITE,
    left_over,
    potential,
    side_value,
    target,
)
from fedkernels.transport.triton.prepare import ELSEWHERE, NOTHING, RUNNING, size_of


@triton.jit(do_not_specialize=["max_iter"])
def finish_side(
    X,
    Y,
    NX,
    NY,
    SIZES,
    MASS,
    LOG_MASS,
    OWN,
    OTHER,
    UNITS,
    STATE,
    POTENTIAL,
    FINAL,
    MARGINAL,
    SUMS,
    n,
    m,
    x_stride,
    y_stride,
    own_stride,
    other_stride,
    D,
    own_half,
    other_half,
    blocks,
    max_iter,
    rho_high,
    rho_low,
    COLUMN: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    SOURCE: tl.constexpr,
    BALANCED: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Potential, marginal and sums of a block of rows, or with COLUMN of columns: X, n are then the
    columns' and Y, m the rows'. own_half and other_half lead to the second half of OWN and OTHER; 0
    where there is one only."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    state = tl.load(STATE + problem)
    if state == ELSEWHERE:
        return
    if COLUMN:
        others, count = size_of(SIZES, problem, m, n, HAS_SIZES)
    else:
        count, others = size_of(SIZES, problem, n, m, HAS_SIZES)
    if block * BI >= count:
        return
    i = block * BI + tl.arange(0, BI)
    in_i = i < count
    at = problem * n + i
    if state == NOTHING:
        zeros = tl.zeros((BI,), tl.float32)
        tl.store(POTENTIAL + at, zeros, mask=in_i)
        tl.store(FINAL + at, zeros + float("-inf"), mask=in_i)
        tl.store(MARGINAL + at, zeros, mask=in_i)
        return

    parity = tl.where(state == RUNNING, max_iter, state) % 2
    own_base = OWN + parity * own_half
    other_base = OTHER + parity * other_half + problem * m
    if COLUMN:
        k = tl.load(UNITS + problem * 4 + 2)
    else:
        k = tl.load(UNITS + problem * 4 + 1)
    s = tl.load(UNITS + problem * 4)
    x = X + problem * x_stride
    y = Y + problem * y_stride
    nx = NX + problem * n
    ny = NY + problem * m
    mass = tl.load(MASS + at, mask=in_i, other=0.0)
    log_mass = tl.load(LOG_MASS + at, mask=in_i, other=float("-inf"))
    own = tl.load(own_base + at, mask=in_i, other=float("-inf"))
    marginal = tl.zeros((BI,), tl.float32)
    linear = tl.zeros((BI,), tl.float64)
    for start in range(0, others, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < others
        other = tl.load(other_base + j, mask=in_j, other=float("-inf"))
        c = cost_block(
            x, y, nx, ny, i, j, in_i, in_j, own_stride, other_stride, D,
            SOURCE, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        plan = plan_of(c, s, own, other, COLUMN)
        marginal += tl.sum(plan, 1)
        if not COLUMN:
            linear += tl.sum(plan * c, 1).to(tl.float64)
    transform = tl.zeros((BI,), tl.float32)
    if tl.sum((in_i & (mass == 0.0)).to(tl.int32), 0) > 0:
        transform = transform_block(
            x, y, nx, ny, other_base, i, in_i, others, own_stride, other_stride, D, s,
            SOURCE, BI, BJ, BK, PRECISION,
        )  # fmt: skip
    f = tl.where(in_i, potential(mass, own, log_mass, transform, k) / s, 0.0)
    tl.store(POTENTIAL + at, f, mask=in_i)
    tl.store(FINAL + at, own, mask=in_i)
    tl.store(MARGINAL + at, marginal, mask=in_i)
    rho = (problem * 0).to(tl.float64) + rho_high + rho_low
    value = tl.sum(side_value(mass, f, rho, BALANCED), 0)
    if COLUMN:
        tl.store(SUMS + problem * blocks + block, value)
    else:
        eps_over_rho = tl.load(UNITS + problem * 4 + 3)
        wanted = target(mass, log_mass, own, eps_over_rho, BALANCED)
        error = tl.sum(tl.abs(marginal - wanted), 0)
        to = SUMS + (problem * blocks + block) * 4
        tl.store(to, value)
        tl.store(to + 1, tl.sum(marginal.to(tl.float64), 0))
        tl.store(to + 2, tl.sum(linear, 0))
        tl.store(to + 3, error.to(tl.float64))


@triton.jit
def fill(OUT, count, value, CHUNK: tl.constexpr):
    for start in range(0, count, CHUNK):
        i = start + tl.arange(0, CHUNK)
        tl.store(OUT + i, tl.zeros((CHUNK,), tl.float32) + value, mask=i < count)


@triton.jit(do_not_specialize=["max_iter"])
def finish(
    SIZES,
    EPS,
    TOTALS,
    STATE,
    SUMS,
    PARTS,
    VALUE,
    LINEAR,
    F,
    G,
    U,
    V,
    R,
    C,
    N_ITER,
    ERROR,
    STATUS,
    n,
    m,
    eps_stride,
    row_blocks,
    column_blocks,
    max_iter,
    tol,
    rho_a_high,
    rho_a_low,
    rho_b_high,
    rho_b_low,
    HAS_SIZES: tl.constexpr,
    BALANCED_A: tl.constexpr,
    BALANCED_B: tl.constexpr,
    BI: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Value, linear cost, error, status of one problem; NaN where there is no solution."""
    problem = tl.program_id(0).to(tl.int64)
    state = tl.load(STATE + problem)
    if state == ELSEWHERE:
        return
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    status = tl.load(STATUS + problem).to(tl.int32)
    total_a = tl.load(TOTALS + problem * 2)
    total_b = tl.load(TOTALS + problem * 2 + 1)
    zero = (problem * 0).to(tl.float64)
    rho_a = zero + rho_a_high + rho_a_low
    rho_b = zero + rho_b_high + rho_b_low
    value = zero
    linear = zero
    error = zero
    iterations = (problem * 0).to(tl.int32)
    if state == NOTHING:
        value += left_over(total_a, total_b, rho_a, rho_b, BALANCED_A, BALANCED_B)
    else:
        sums = tl.zeros((CHUNK, 4), tl.float64)
        term = tl.arange(0, 4)
        for start in range(0, tl.cdiv(rows, BI), CHUNK):
            k = start + tl.arange(0, CHUNK)
            at = (problem * row_blocks + k)[:, None] * 4 + term[None, :]
            sums += tl.load(SUMS + at, mask=(k < tl.cdiv(rows, BI))[:, None], other=0.0)
        parts = tl.zeros((CHUNK,), tl.float64)
        for start in range(0, tl.cdiv(columns, BI), CHUNK):
            k = start + tl.arange(0, CHUNK)
            at = problem * column_blocks + k
            parts += tl.load(PARTS + at, mask=k < tl.cdiv(columns, BI), other=0.0)
        four = tl.sum(sums, 0)
        eps = tl.load(EPS + problem * eps_stride)
        mass = tl.sum(tl.where(term == 1, four, 0.0), 0)
        value += tl.sum(tl.where(term == 0, four, 0.0), 0) + tl.sum(parts, 0)
        value -= eps * (mass - total_a * total_b)
        linear += tl.sum(tl.where(term == 2, four, 0.0), 0)
        error += tl.sum(tl.where(term == 3, four, 0.0), 0)
        iterations += tl.where(state == RUNNING, max_iter, state)
        reached = (state > 0) | ((error.to(tl.float32) <= tol) & (tol > 0.0))
        status = tl.where(reached, status, MAX_ITER)
    value32 = value.to(tl.float32)
    linear32 = linear.to(tl.float32)
    error32 = error.to(tl.float32)
    sound = is_finite(value32) & is_finite(linear32) & is_finite(error32)
    status = tl.where((state != NOTHING) & ~sound, NON_FINITE, status)
    bad = (status == NON_FINITE) | (status == INFEASIBLE)
    nan = float("nan")
    tl.store(VALUE + problem, tl.where(bad, nan, value32))
    tl.store(LINEAR + problem, tl.where(bad, nan, linear32))
    tl.store(ERROR + problem, tl.where(bad, nan, error32))
    tl.store(N_ITER + problem, tl.where(bad, 0, iterations))
    tl.store(STATUS + problem, status.to(tl.uint8))
    if bad:
        fill(F + problem * n, rows, nan, CHUNK)
        fill(U + problem * n, rows, nan, CHUNK)
        fill(R + problem * n, rows, nan, CHUNK)
        fill(G + problem * m, columns, nan, CHUNK)
        fill(V + problem * m, columns, nan, CHUNK)
        fill(C + problem * m, columns, nan, CHUNK)
