"""Sinkhorn on problems that stay in registers: several small problems, or one, per program.

A program holds a tile (G, N, M): G problems of one size class, padded to powers of two. Iteration 1
runs in the log domain, the others on E = exp2(K + u + v) with factors p and q:

    p_i = a_i / (E q)_i,    q_j = b_j / (E^T p)_j        (balanced; damped otherwise)

Folds (u += log2 p, v += log2 q, E rebuilt from the cost) follow iterations 2, 4, 8, 16 and every
16th. A window whose factors grew too far is redone in the log domain from its fold, for the
problems concerned alone. Work: one multiply-add per cell and half-step, one exp2 per cell and fold.

A problem's bits depend on that problem alone: its class follows its own (n, m), problems that are
done are frozen, and every sum runs along the problem's own axis of the tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite, log2_
from fedkernels.transport.triton.masses import (
    INFEASIBLE,
    MAX_ITER,
    NON_FINITE,
    damping,
    judge,
    left_over,
    potential,
    scale_of,
    side_value,
    target,
    totals,
)
from fedkernels.transport.triton.relaxation import (
    next_omega,
    relaxed_factor,
    relaxed_potential,
)

LARGEST_FACTOR = tl.constexpr(96.0)  # log2 of the factors of a window that is kept
WINDOW = tl.constexpr(16)


@triton.jit
def log2_sum_exp2(x, AXIS: tl.constexpr):
    largest = tl.max(x, AXIS)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    return largest + log2_(tl.sum(tl.exp2(x - tl.expand_dims(largest, AXIS)), AXIS))


@triton.jit
def load_cost(C, at, inside, live):
    """Cells of the problems that are solved; 0 elsewhere, also where a problem is not finite."""
    c = tl.load(C + at, mask=inside, other=0.0)
    return tl.where((live != 0)[:, None, None], c, 0.0)


@triton.jit
def load_masses(A, stride, problem, at, inside, mine, HAS: tl.constexpr):
    """The side's masses in double (0 where none are given) and their sum."""
    if HAS:
        mass = tl.load(A + problem[:, None] * stride + at[None, :], mask=inside, other=0.0)
        return mass.to(tl.float64)
    else:
        return tl.where(inside, 0.0, 0.0).to(tl.float64)


@triton.jit
def scaling(mass, log_mass, u, t, k, BALANCED: tl.constexpr):
    """Factor of a side from t = E q and its potential at the fold."""
    positive = mass > 0.0
    if BALANCED:
        return tl.where(positive, mass / tl.where(positive, t, 1.0), 0.0)
    else:
        u = tl.where(positive, u, 0.0)
        log_p = tl.where(positive, log_mass, 0.0) - k * (log2_(tl.where(positive, t, 1.0)) - u) - u
        return tl.where(positive, tl.exp2(log_p), 0.0)


@triton.jit(do_not_specialize=["batch", "max_iter"])
def sinkhorn_registers(
    C,
    A,
    B,
    EPS,
    SIZES,
    G0,
    VALUE,
    LINEAR,
    F,
    GG,
    U,
    V,
    R,
    CC,
    N_ITER,
    ERROR,
    STATUS,
    batch,
    n,
    m,
    cost_stride,
    a_stride,
    b_stride,
    eps_stride,
    g0_stride,
    rho_a_high,
    rho_a_low,
    rho_b_high,
    rho_b_low,
    max_iter,
    tol,
    G: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    N_ABOVE: tl.constexpr,
    M_ABOVE: tl.constexpr,
    HAS_A: tl.constexpr,
    HAS_B: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_G0: tl.constexpr,
    BALANCED_A: tl.constexpr,
    BALANCED_B: tl.constexpr,
    LOG: tl.constexpr,
    SOR: tl.constexpr,
):
    """Solves the problems with N_ABOVE < rows <= N and M_ABOVE < columns <= M."""
    problem = tl.program_id(0) * G + tl.arange(0, G)
    mine = problem < batch
    problem = problem.to(tl.int64)
    if HAS_SIZES:
        rows = tl.load(SIZES + problem * 2, mask=mine, other=-1).to(tl.int32)
        columns = tl.load(SIZES + problem * 2 + 1, mask=mine, other=-1).to(tl.int32)
        mine = mine & (rows > N_ABOVE) & (rows <= N) & (columns > M_ABOVE) & (columns <= M)
    else:
        rows = tl.zeros((G,), tl.int32) + n
        columns = tl.zeros((G,), tl.int32) + m
    if tl.max(mine.to(tl.int32), 0) == 0:
        return

    i = tl.arange(0, N)
    j = tl.arange(0, M)
    in_rows = (i[None, :] < rows[:, None]) & mine[:, None]
    in_columns = (j[None, :] < columns[:, None]) & mine[:, None]
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    at = problem[:, None, None] * cost_stride + i[None, :, None] * m + j[None, None, :]
    at_rows = problem[:, None] * n + i[None, :]
    at_columns = problem[:, None] * m + j[None, :]

    # Masses, units, verdict.
    eps = tl.load(EPS + problem * eps_stride, mask=mine, other=1.0)
    zero = tl.zeros((G,), tl.float64)
    rho_a = zero + rho_a_high + rho_a_low
    rho_b = zero + rho_b_high + rho_b_low
    s = scale_of(eps)
    ka, eps_over_rho = damping(rho_a, eps, BALANCED_A)
    kb, _ = damping(rho_b, eps, BALANCED_B)
    wide_a = load_masses(A, a_stride, problem, i, in_rows, mine, HAS_A)
    wide_b = load_masses(B, b_stride, problem, j, in_columns, mine, HAS_B)
    total_a, total_b = totals(tl.sum(wide_a, 1), tl.sum(wide_b, 1), rows, columns, HAS_A, HAS_B)
    if not HAS_A:
        wide_a = tl.where(in_rows, (total_a / tl.maximum(rows, 1).to(tl.float64))[:, None], 0.0)
    if not HAS_B:
        wide_b = tl.where(
            in_columns, (total_b / tl.maximum(columns, 1).to(tl.float64))[:, None], 0.0
        )
    negative = tl.max((wide_a < 0.0).to(tl.int32), 1) | tl.max((wide_b < 0.0).to(tl.int32), 1)
    c = tl.load(C + at, mask=inside, other=0.0)
    unfinished = tl.sum(tl.sum(tl.where(is_finite(c), 0, 1), 2), 1)
    if HAS_G0:
        start = tl.load(G0 + problem[:, None] * g0_stride + j[None, :], mask=in_columns, other=0.0)
        unfinished += tl.sum(tl.where(is_finite(start), 0, 1), 1)
    status, live, factor, total_b = judge(
        total_a, total_b, rows, columns, eps, unfinished == 0, negative, BALANCED_A, BALANCED_B
    )
    alive = (live != 0) & mine
    a = tl.where(alive[:, None], wide_a, 0.0).to(tl.float32)
    b = tl.where(alive[:, None], wide_b * factor[:, None], 0.0).to(tl.float32)
    la = log2_(a)
    lb = log2_(b)
    s = tl.where(alive, s, 1.0)
    minus_s = -s[:, None, None]

    # Iteration 1.
    c = load_cost(C, at, inside, live)
    v = lb
    if HAS_G0:
        v = tl.where(b > 0.0, tl.fma(tl.where(alive[:, None], start, 0.0), s[:, None], lb), lb)
    u = la - ka[:, None] * log2_sum_exp2(tl.fma(c, minus_s, v[:, None, :]), 2)
    u = tl.where(a > 0.0, u, float("-inf"))
    v = lb - kb[:, None] * log2_sum_exp2(tl.fma(c, minus_s, u[:, :, None]), 1)
    v = tl.where(b > 0.0, v, float("-inf"))

    running = (live != 0) & mine
    running = running.to(tl.int32)
    iterations = tl.zeros((G,), tl.int32) + max_iter
    # Over-relaxation: omega, that of the last iteration, and the errors that it is chosen from.
    omega = tl.zeros((G,), tl.float32) + 1.0
    used = omega
    one_ago = tl.zeros((G,), tl.float32)
    two_ago = one_ago
    marked = one_ago - 1.0
    done = 1
    while (done < max_iter) & (tl.max(running, 0) > 0):
        length = tl.minimum(tl.minimum(done, WINDOW), max_iter - done)
        redo = running
        if not LOG:
            c = load_cost(C, at, inside, live)
            E = tl.exp2(tl.fma(c, minus_s, u[:, :, None]) + v[:, None, :])
            p = tl.where(a > 0.0, 1.0, 0.0)
            q = tl.where(b > 0.0, 1.0, 0.0)
            moving = running
            stopped_at = iterations
            omega_w, used_w, one_w, two_w, marked_w = omega, used, one_ago, two_ago, marked
            k = 0
            while (k < length) & (tl.max(moving, 0) > 0):
                t = tl.sum(E * q[:, None, :], 2)
                wanted = target(a, la, u + log2_(p), eps_over_rho[:, None], BALANCED_A)
                error = tl.sum(tl.abs(p * t - wanted), 1)
                within = (moving != 0) & (error <= tol) & (tol > 0.0)
                stop = within
                if SOR:
                    stop = within & (used_w == 1.0)
                stopped_at = tl.where(stop, done + k, stopped_at)
                moving = tl.where(stop, 0, moving)
                move = (moving != 0)[:, None]
                p_next = scaling(a, la, u, t, ka[:, None], BALANCED_A)
                if SOR:
                    ratio = p_next / tl.where(a > 0.0, p, 1.0)
                    p_next = p * relaxed_factor(ratio, used_w[:, None])
                    omega_w, marked_w = next_omega(done + k, omega_w, error, two_w, marked_w)
                    two_w = one_w
                    one_w = error
                    used_w = tl.where(within | (done + k == max_iter - 1), 1.0, omega_w)
                p = tl.where(move, p_next, p)
                t = tl.sum(E * p[:, :, None], 1)
                q_next = scaling(b, lb, v, t, kb[:, None], BALANCED_B)
                if SOR:
                    ratio = q_next / tl.where(b > 0.0, q, 1.0)
                    q_next = q * relaxed_factor(ratio, used_w[:, None])
                q = tl.where(move, q_next, q)
                k += 1
            log_p = log2_(tl.where(a > 0.0, p, 1.0))
            log_q = log2_(tl.where(b > 0.0, q, 1.0))
            # A factor that is 0, infinite or NaN has an infinite logarithm or NaN.
            broken = tl.sum(tl.where(is_finite(log_p), 0, 1), 1)
            broken += tl.sum(tl.where(is_finite(log_q), 0, 1), 1)
            far = tl.max(log_p, 1) + tl.max(log_q, 1) > LARGEST_FACTOR
            keep = (running != 0) & (broken == 0) & ~far
            redo = tl.where(keep, 0, running)
            u = tl.where(keep[:, None], u + log_p, u)
            v = tl.where(keep[:, None], v + log_q, v)
            iterations = tl.where(keep, stopped_at, iterations)
            running = tl.where(keep, moving, running)
            if SOR:
                omega = tl.where(keep, omega_w, omega)
                used = tl.where(keep, used_w, used)
                one_ago = tl.where(keep, one_w, one_ago)
                two_ago = tl.where(keep, two_w, two_ago)
                marked = tl.where(keep, marked_w, marked)
        if tl.max(redo, 0) > 0:
            c = load_cost(C, at, inside, live)
            k = 0
            while (k < length) & (tl.max(redo, 0) > 0):
                transform = log2_sum_exp2(tl.fma(c, minus_s, v[:, None, :]), 2)
                wanted = target(a, la, u, eps_over_rho[:, None], BALANCED_A)
                error = tl.sum(tl.abs(tl.exp2(u + transform) - wanted), 1)
                within = (redo != 0) & (error <= tol) & (tol > 0.0)
                stop = within
                if SOR:
                    stop = within & (used == 1.0)
                iterations = tl.where(stop, done + k, iterations)
                running = tl.where(stop, 0, running)
                redo = tl.where(stop, 0, redo)
                move = (redo != 0)[:, None]
                u_next = tl.where(a > 0.0, la - ka[:, None] * transform, float("-inf"))
                if SOR:
                    u_next = relaxed_potential(u, u_next, a, used[:, None])
                    again = redo != 0
                    new_omega, new_marked = next_omega(done + k, omega, error, two_ago, marked)
                    omega = tl.where(again, new_omega, omega)
                    marked = tl.where(again, new_marked, marked)
                    two_ago = tl.where(again, one_ago, two_ago)
                    one_ago = tl.where(again, error, one_ago)
                    plain = within | (done + k == max_iter - 1)
                    used = tl.where(again, tl.where(plain, 1.0, omega), used)
                u = tl.where(move, u_next, u)
                transform = log2_sum_exp2(tl.fma(c, minus_s, u[:, :, None]), 1)
                v_next = tl.where(b > 0.0, lb - kb[:, None] * transform, float("-inf"))
                if SOR:
                    v_next = relaxed_potential(v, v_next, b, used[:, None])
                v = tl.where(move, v_next, v)
                k += 1
        done += length

    # The plan that is returned, rebuilt from the cost.
    c = load_cost(C, at, inside, live)
    at_zero_a = log2_sum_exp2(tl.fma(c, minus_s, v[:, None, :]), 2)
    at_zero_b = log2_sum_exp2(tl.fma(c, minus_s, u[:, :, None]), 1)
    f = potential(a, u, la, at_zero_a, ka[:, None]) / s[:, None]
    g = potential(b, v, lb, at_zero_b, kb[:, None]) / s[:, None]
    f = tl.where(alive[:, None], f, 0.0)
    g = tl.where(alive[:, None], g, 0.0)
    plan = tl.exp2(tl.fma(c, minus_s, u[:, :, None]) + v[:, None, :])
    plan = tl.where(inside, plan, 0.0)
    r = tl.sum(plan, 2)
    linear = tl.sum(tl.sum(plan * c, 2).to(tl.float64), 1)
    columns_of_plan = tl.sum(plan, 1)
    wanted = target(a, la, u, eps_over_rho[:, None], BALANCED_A)
    error = tl.sum(tl.abs(r - wanted), 1)
    value = tl.sum(side_value(a, f, rho_a[:, None], BALANCED_A), 1)
    value += tl.sum(side_value(b, g, rho_b[:, None], BALANCED_B), 1)
    value -= eps * (tl.sum(r.to(tl.float64), 1) - total_a * total_b)
    value = tl.where(
        alive, value, left_over(total_a, total_b, rho_a, rho_b, BALANCED_A, BALANCED_B)
    )
    value = value.to(tl.float32)
    linear = linear.to(tl.float32)

    reached = (running == 0) | ((error <= tol) & (tol > 0.0))
    status = tl.where(alive & ~reached, MAX_ITER, status)
    sound = is_finite(value) & is_finite(linear) & is_finite(error)
    status = tl.where(alive & ~sound, NON_FINITE, status)
    bad = (status == NON_FINITE) | (status == INFEASIBLE)
    iterations = tl.where(alive & ~bad, iterations, 0)
    nan = float("nan")
    bad2 = bad[:, None]
    tl.store(VALUE + problem, tl.where(bad, nan, value), mask=mine)
    tl.store(LINEAR + problem, tl.where(bad, nan, linear), mask=mine)
    tl.store(ERROR + problem, tl.where(bad, nan, error), mask=mine)
    tl.store(N_ITER + problem, iterations, mask=mine)
    tl.store(STATUS + problem, status.to(tl.uint8), mask=mine)
    tl.store(F + at_rows, tl.where(bad2, nan, f), mask=in_rows)
    tl.store(GG + at_columns, tl.where(bad2, nan, g), mask=in_columns)
    tl.store(U + at_rows, tl.where(bad2, nan, u), mask=in_rows)
    tl.store(V + at_columns, tl.where(bad2, nan, v), mask=in_columns)
    tl.store(R + at_rows, tl.where(bad2, nan, r), mask=in_rows)
    tl.store(CC + at_columns, tl.where(bad2, nan, columns_of_plan), mask=in_columns)
