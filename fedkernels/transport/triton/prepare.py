"""What precedes the iterations of the streaming kernels: finite inputs, masses, units, verdicts."""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite, log2_
from fedkernels.transport.triton.masses import damping, judge, scale_of, totals

RUNNING = tl.constexpr(0)
NOTHING = tl.constexpr(-1)
ELSEWHERE = tl.constexpr(-2)


@triton.jit
def size_of(SIZES, problem, n, m, HAS_SIZES: tl.constexpr):
    if HAS_SIZES:
        rows = tl.load(SIZES + problem * 2).to(tl.int32)
        columns = tl.load(SIZES + problem * 2 + 1).to(tl.int32)
    else:
        rows = (problem * 0).to(tl.int32) + n
        columns = (problem * 0).to(tl.int32) + m
    return rows, columns


@triton.jit
def scan_matrix(
    C,
    SIZES,
    BAD,
    n,
    m,
    blocks,
    cost_stride,
    HAS_SIZES: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """BAD (B, blocks): how many entries of each block of rows are not finite."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    i = block * BI + tl.arange(0, BI)
    bad = tl.zeros((BI, BJ), tl.int32)
    if block * BI < rows:
        for start in range(0, columns, BJ):
            j = start + tl.arange(0, BJ)
            at = i.to(tl.int64)[:, None] * m + j[None, :]
            inside = (i < rows)[:, None] & (j < columns)[None, :]
            c = tl.load(C + problem * cost_stride + at, mask=inside, other=0.0)
            bad += tl.where(is_finite(c), 0, 1)
    tl.store(BAD + problem * blocks + block, tl.sum(tl.sum(bad, 1), 0))


@triton.jit
def walk_masses(A, count, CHUNK: tl.constexpr):
    """Sum in double, and how many masses are negative."""
    total = tl.zeros((CHUNK,), tl.float64)
    negative = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, count, CHUNK):
        i = start + tl.arange(0, CHUNK)
        mass = tl.load(A + i, mask=i < count, other=0.0)
        total += mass.to(tl.float64)
        negative += (mass < 0.0).to(tl.int32)
    return tl.sum(total, 0), tl.sum(negative, 0)


@triton.jit
def write_masses(A, OUT, LOG_OUT, count, uniform, factor, HAS: tl.constexpr, CHUNK: tl.constexpr):
    """Masses in float32 (scaled by `factor`, or uniform) and their log2."""
    for start in range(0, count, CHUNK):
        i = start + tl.arange(0, CHUNK)
        if HAS:
            mass = tl.load(A + i, mask=i < count, other=0.0).to(tl.float64)
        else:
            mass = tl.zeros((CHUNK,), tl.float64) + uniform
        mass = (mass * factor).to(tl.float32)
        tl.store(OUT + i, mass, mask=i < count)
        tl.store(LOG_OUT + i, log2_(mass), mask=i < count)


@triton.jit
def prepare(
    A,
    B,
    EPS,
    SIZES,
    G0,
    BAD,
    MASS_A,
    MASS_B,
    LOG_A,
    LOG_B,
    V,
    UNITS,
    TOTALS,
    STATE,
    STATUS,
    n,
    m,
    blocks,
    a_stride,
    b_stride,
    eps_stride,
    g0_stride,
    rho_a_high,
    rho_a_low,
    rho_b_high,
    rho_b_low,
    ABOVE: tl.constexpr,
    BELOW: tl.constexpr,
    HAS_A: tl.constexpr,
    HAS_B: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_G0: tl.constexpr,
    BALANCED_A: tl.constexpr,
    BALANCED_B: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """What a problem is iterated with, if its longer side is above ABOVE and at most BELOW: masses,
    their log2, the start of v, and UNITS (B, 4) = s, damping of a and of b, eps / rho_a."""
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    longer = tl.maximum(rows, columns)
    if (longer <= ABOVE) | (longer > BELOW):
        tl.store(STATE + problem, ELSEWHERE)
        return
    zero = (problem * 0).to(tl.float64)
    eps = tl.load(EPS + problem * eps_stride)
    rho_a = zero + rho_a_high + rho_a_low
    rho_b = zero + rho_b_high + rho_b_low
    sum_a = zero
    sum_b = zero
    negative = (problem * 0).to(tl.int32)
    if HAS_A:
        sum_a, below = walk_masses(A + problem * a_stride, rows, CHUNK)
        negative += below
    if HAS_B:
        sum_b, below = walk_masses(B + problem * b_stride, columns, CHUNK)
        negative += below
    bad = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, blocks, CHUNK):
        k = start + tl.arange(0, CHUNK)
        bad += tl.load(BAD + problem * blocks + k, mask=k < blocks, other=0)
    if HAS_G0:
        for start in range(0, columns, CHUNK):
            j = start + tl.arange(0, CHUNK)
            g = tl.load(G0 + problem * g0_stride + j, mask=j < columns, other=0.0)
            bad += tl.where(is_finite(g), 0, 1)
    total_a, total_b = totals(sum_a, sum_b, rows, columns, HAS_A, HAS_B)
    status, live, factor, scaled_b = judge(
        total_a, total_b, rows, columns, eps, tl.sum(bad, 0) == 0, negative, BALANCED_A, BALANCED_B
    )
    s = scale_of(eps)
    ka, eps_over_rho = damping(rho_a, eps, BALANCED_A)
    kb, _ = damping(rho_b, eps, BALANCED_B)
    tl.store(UNITS + problem * 4, s)
    tl.store(UNITS + problem * 4 + 1, ka)
    tl.store(UNITS + problem * 4 + 2, kb)
    tl.store(UNITS + problem * 4 + 3, eps_over_rho)
    tl.store(TOTALS + problem * 2, total_a)
    tl.store(TOTALS + problem * 2 + 1, scaled_b)
    tl.store(STATUS + problem, status.to(tl.uint8))
    tl.store(STATE + problem, tl.where(live != 0, RUNNING, NOTHING))
    if live != 0:
        uniform_a = total_a / tl.maximum(rows, 1).to(tl.float64)
        uniform_b = total_b / tl.maximum(columns, 1).to(tl.float64)
        out_a = problem * n
        out_b = problem * m
        # Without masses nothing is read: any pointer does.
        from_a = MASS_A
        from_b = MASS_B
        if HAS_A:
            from_a = A + problem * a_stride
        if HAS_B:
            from_b = B + problem * b_stride
        write_masses(
            from_a, MASS_A + out_a, LOG_A + out_a, rows, uniform_a, zero + 1.0, HAS_A, CHUNK
        )
        write_masses(
            from_b, MASS_B + out_b, LOG_B + out_b, columns, uniform_b, factor, HAS_B, CHUNK
        )
        tl.debug_barrier()
        for start in range(0, columns, CHUNK):
            j = start + tl.arange(0, CHUNK)
            v = tl.load(LOG_B + out_b + j, mask=j < columns, other=0.0)
            if HAS_G0:
                g = tl.load(G0 + problem * g0_stride + j, mask=j < columns, other=0.0)
                v = tl.where(v == float("-inf"), v, tl.fma(g, s, v))
            tl.store(V + out_b + j, v, mask=j < columns)
