"""Sinkhorn that walks over blocks of the cost, in the log domain: from a matrix or from points.

Problems up to a size are iterated by one program each (`iterate`), larger ones by one launch per
half-step (`row_step`, `column_step`) over all blocks; those launches are fixed in number
and return at once where a problem's STATE says that it is done, so the host never waits. STATE is 0
while a problem is iterated, k > 0 when it passed the test after k iterations, -1 where there is
nothing to iterate, -2 where another kernel has the problem. u of iteration k stands in half k % 2
of U2: the pass that measures iteration k writes the other half, forgotten if k is the last.

STEP is 0 for the plain iteration, 1 for the over-relaxed, 2 for the symmetric one (the average of u
and its plain step; there is no v). RELAX holds omega, its last use, two errors and the mark, in two
halves like U2.

Every sum is over fixed blocks in a fixed order, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels.transport.triton.blocks import transform_block
from fedkernels.transport.triton.masses import target
from fedkernels.transport.triton.prepare import RUNNING, size_of
from fedkernels.transport.triton.relaxation import next_omega, relaxed_potential

PLAIN = tl.constexpr(0)
RELAXED = tl.constexpr(1)
SYMMETRIC = tl.constexpr(2)
PARTIALS = tl.constexpr(128)  # block errors that are added at a time


@triton.jit
def row_block(
    X,
    Y,
    NX,
    NY,
    MASS,
    LOG_MASS,
    V,
    U_NOW,
    U_NEXT,
    UNITS,
    first,
    rows,
    columns,
    own_stride,
    other_stride,
    D,
    omega,
    measured,
    STEP: tl.constexpr,
    SOURCE: tl.constexpr,
    BALANCED: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """New u of a block of rows; returns the block's share of the error of the pair before. V is
    what stands on the columns: u itself in the symmetric iteration."""
    s = tl.load(UNITS)
    k = tl.load(UNITS + 1)
    eps_over_rho = tl.load(UNITS + 3)
    i = first + tl.arange(0, BI)
    in_i = i < rows
    transform = transform_block(
        X, Y, NX, NY, V, i, in_i, columns, own_stride, other_stride, D, s,
        SOURCE, BI, BJ, BK, PRECISION,
    )  # fmt: skip
    mass = tl.load(MASS + i, mask=in_i, other=0.0)
    log_mass = tl.load(LOG_MASS + i, mask=in_i, other=float("-inf"))
    error = tl.zeros((BI,), tl.float32)
    new = tl.where(mass > 0.0, log_mass - k * transform, float("-inf"))
    if measured:
        u = tl.load(U_NOW + i, mask=in_i, other=float("-inf"))
        marginal = tl.where(mass > 0.0, tl.exp2(u + transform), 0.0)
        error = tl.abs(marginal - target(mass, log_mass, u, eps_over_rho, BALANCED))
    if STEP != PLAIN:
        u = tl.load(U_NOW + i, mask=in_i, other=float("-inf"))
        if STEP == SYMMETRIC:
            new = (u + new) * 0.5
        else:
            new = relaxed_potential(u, new, mass, omega)
    tl.store(U_NEXT + i, new, mask=in_i)
    return tl.sum(error, 0)


@triton.jit
def following(done, max_iter, within, used, omega, error, one_ago, two_ago, marked):
    """The state of over-relaxation after the error of iteration `done` > 0 is known."""
    omega, marked = next_omega(done, omega, error, two_ago, marked)
    used = tl.where(within | (done == max_iter - 1), 1.0, omega)
    return used, omega, error, one_ago, marked


@triton.jit
def column_block(
    X,
    Y,
    NX,
    NY,
    MASS,
    LOG_MASS,
    U,
    V,
    UNITS,
    first,
    rows,
    columns,
    own_stride,
    other_stride,
    D,
    omega,
    STEP: tl.constexpr,
    SOURCE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """New v of a block of columns."""
    s = tl.load(UNITS)
    k = tl.load(UNITS + 2)
    j = first + tl.arange(0, BI)
    in_j = j < columns
    transform = transform_block(
        Y, X, NY, NX, U, j, in_j, rows, other_stride, own_stride, D, s,
        SOURCE, BI, BJ, BK, PRECISION,
    )  # fmt: skip
    mass = tl.load(MASS + j, mask=in_j, other=0.0)
    log_mass = tl.load(LOG_MASS + j, mask=in_j, other=float("-inf"))
    plain = tl.where(mass > 0.0, log_mass - k * transform, float("-inf"))
    if STEP == RELAXED:
        v = tl.load(V + j, mask=in_j, other=float("-inf"))
        plain = relaxed_potential(v, plain, mass, omega)
    tl.store(V + j, plain, mask=in_j)


@triton.jit(do_not_specialize=["max_iter"])
def iterate(
    X,
    Y,
    NX,
    NY,
    SIZES,
    MASS_A,
    MASS_B,
    LOG_A,
    LOG_B,
    U2,
    V,
    UNITS,
    STATE,
    n,
    m,
    x_stride,
    y_stride,
    own_stride,
    other_stride,
    D,
    half,
    max_iter,
    tol,
    LIMIT: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    STEP: tl.constexpr,
    SOURCE: tl.constexpr,
    BALANCED: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All iterations of one problem with at most LIMIT rows and columns, by one program."""
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    if (tl.load(STATE + problem) != RUNNING) | (rows > LIMIT) | (columns > LIMIT):
        return
    x = X + problem * x_stride
    y = Y + problem * y_stride
    units = UNITS + problem * 4
    at_a = problem * n
    at_b = problem * m
    zero = (problem * 0).to(tl.float32)
    omega = zero + 1.0
    used = zero + 1.0
    one_ago = zero
    two_ago = zero
    marked = zero - 1.0
    done = 0
    stop = 0
    while (done < max_iter) & (stop == 0):
        now = U2 + (done % 2) * half + at_a
        after = U2 + ((done + 1) % 2) * half + at_a
        across = V + at_b
        if STEP == SYMMETRIC:
            across = now
        measured = (done > 0) & (tol > 0.0)
        if STEP == RELAXED:
            measured = done > 0
        error = zero
        for first in range(0, rows, BI):
            error += row_block(
                x, y, NX + at_a, NY + at_b, MASS_A + at_a, LOG_A + at_a, across, now, after,
                units, first, rows, columns, own_stride, other_stride, D, used, measured, STEP,
                SOURCE, BALANCED, BI, BJ, BK, PRECISION,
            )  # fmt: skip
        # What one thread has written the others read.
        tl.debug_barrier()
        within = measured & (tol > 0.0) & (error <= tol)
        last = within & (used == 1.0)
        if STEP == RELAXED:
            if done > 0:
                used, omega, one_ago, two_ago, marked = following(
                    done, max_iter, within, used, omega, error, one_ago, two_ago, marked
                )
        if last:
            stop = done
        else:
            if STEP != SYMMETRIC:
                for first in range(0, columns, BI):
                    column_block(
                        x, y, NX + at_a, NY + at_b, MASS_B + at_b, LOG_B + at_b, after, across,
                        units, first, rows, columns, own_stride, other_stride, D, used, STEP,
                        SOURCE, BI, BJ, BK, PRECISION,
                    )  # fmt: skip
            done += 1
        tl.debug_barrier()
    tl.store(STATE + problem, stop)


@triton.jit(do_not_specialize=["done"])
def row_step(
    X,
    Y,
    NX,
    NY,
    SIZES,
    MASS_A,
    LOG_A,
    U2,
    V,
    UNITS,
    RELAX,
    STATE,
    PARTIAL,
    n,
    m,
    x_stride,
    y_stride,
    own_stride,
    other_stride,
    D,
    half,
    relax_half,
    blocks,
    done,
    tol,
    LIMIT: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    STEP: tl.constexpr,
    SOURCE: tl.constexpr,
    BALANCED: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """u of iteration done + 1, and the error of iteration `done`, of one block of rows."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    if (tl.load(STATE + problem) != RUNNING) | ((rows <= LIMIT) & (columns <= LIMIT)):
        return
    if block * BI >= rows:
        return
    at_a = problem * n
    at_b = problem * m
    now = U2 + (done % 2) * half + at_a
    across = V + at_b
    if STEP == SYMMETRIC:
        across = now
    measured = (done > 0) & (tol > 0.0)
    used = (problem * 0).to(tl.float32) + 1.0
    if STEP == RELAXED:
        measured = done > 0
        if done > 0:
            used = tl.load(RELAX + (done % 2) * relax_half + problem * 5 + 1)
    error = row_block(
        X + problem * x_stride, Y + problem * y_stride, NX + at_a, NY + at_b,
        MASS_A + at_a, LOG_A + at_a, across, now, U2 + ((done + 1) % 2) * half + at_a,
        UNITS + problem * 4, block * BI, rows, columns, own_stride, other_stride, D,
        used, measured, STEP, SOURCE, BALANCED, BI, BJ, BK, PRECISION,
    )  # fmt: skip
    tl.store(PARTIAL + problem * blocks + block, error)


@triton.jit
def error_of(PARTIAL, count):
    """Sum of the blocks' errors, in a fixed order."""
    errors = tl.zeros((PARTIALS,), tl.float32)
    for start in range(0, count, PARTIALS):
        k = start + tl.arange(0, PARTIALS)
        errors += tl.load(PARTIAL + k, mask=k < count, other=0.0)
    return tl.sum(errors, 0)


@triton.jit(do_not_specialize=["done"])
def settle(
    SIZES,
    STATE,
    PARTIAL,
    n,
    m,
    blocks,
    done,
    tol,
    LIMIT: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    BI: tl.constexpr,
):
    """Whether iteration `done` of a symmetric problem was the last."""
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    if (tl.load(STATE + problem) != RUNNING) | ((rows <= LIMIT) & (columns <= LIMIT)):
        return
    if error_of(PARTIAL + problem * blocks, tl.cdiv(rows, BI)) <= tol:
        tl.store(STATE + problem, done)


@triton.jit(do_not_specialize=["done", "max_iter"])
def column_step(
    X,
    Y,
    NX,
    NY,
    SIZES,
    MASS_B,
    LOG_B,
    U2,
    V,
    UNITS,
    RELAX,
    STATE,
    PARTIAL,
    n,
    m,
    x_stride,
    y_stride,
    own_stride,
    other_stride,
    D,
    half,
    relax_half,
    row_blocks,
    blocks,
    done,
    max_iter,
    tol,
    LIMIT: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    STEP: tl.constexpr,
    SOURCE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """v of iteration done + 1 of one block of columns, unless iteration `done` passed the test.

    Every program comes to the same verdict from the same sums; the first one writes it down.
    """
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows, columns = size_of(SIZES, problem, n, m, HAS_SIZES)
    if (tl.load(STATE + problem) != RUNNING) | ((rows <= LIMIT) & (columns <= LIMIT)):
        return
    zero = (problem * 0).to(tl.float32)
    used = zero + 1.0
    omega = used
    one_ago = zero
    two_ago = zero
    marked = zero - 1.0
    measured = (done > 0) & (tol > 0.0)
    if STEP == RELAXED:
        measured = done > 0
    if measured:
        if STEP == RELAXED:
            old = RELAX + (done % 2) * relax_half + problem * 5
            omega = tl.load(old)
            used = tl.load(old + 1)
            one_ago = tl.load(old + 2)
            two_ago = tl.load(old + 3)
            marked = tl.load(old + 4)
        error = error_of(PARTIAL + problem * row_blocks, tl.cdiv(rows, BI))
        within = (tol > 0.0) & (error <= tol)
        if within & (used == 1.0):
            if block == 0:
                tl.store(STATE + problem, done)
            return
        if STEP == RELAXED:
            used, omega, one_ago, two_ago, marked = following(
                done, max_iter, within, used, omega, error, one_ago, two_ago, marked
            )
    if STEP == RELAXED:
        if block == 0:
            new = RELAX + ((done + 1) % 2) * relax_half + problem * 5
            tl.store(new, omega)
            tl.store(new + 1, used)
            tl.store(new + 2, one_ago)
            tl.store(new + 3, two_ago)
            tl.store(new + 4, marked)
    if block * BI >= columns:
        return
    at_a = problem * n
    at_b = problem * m
    column_block(
        X + problem * x_stride, Y + problem * y_stride, NX + at_a, NY + at_b,
        MASS_B + at_b, LOG_B + at_b, U2 + ((done + 1) % 2) * half + at_a, V + at_b,
        UNITS + problem * 4, block * BI, rows, columns, own_stride, other_stride, D, used, STEP,
        SOURCE, BI, BJ, BK, PRECISION,
    )  # fmt: skip
