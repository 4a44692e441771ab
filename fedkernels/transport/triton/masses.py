"""Masses, units and the verdict on a problem before its first iteration; sums in double.

Written for scalars and for tiles of problems alike, so that every class of problems shares them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite

CONVERGED = tl.constexpr(0)
MAX_ITER = tl.constexpr(1)
NON_FINITE = tl.constexpr(2)
INFEASIBLE = tl.constexpr(3)
EMPTY = tl.constexpr(4)
MISMATCH = tl.constexpr(1e-4)  # relative mismatch of balanced totals that is scaled away (float32)


@triton.jit
def scale_of(eps):
    """log2(e) / eps in double, rounded once."""
    return (1.4426950408889634 / eps).to(tl.float32)


@triton.jit
def damping(rho, eps, BALANCED: tl.constexpr):
    """rho / (rho + eps) and eps / rho; 1 and 0 where the side is balanced."""
    if BALANCED:
        return (eps * 0.0 + 1.0).to(tl.float32), (eps * 0.0).to(tl.float32)
    else:
        return (rho / (rho + eps)).to(tl.float32), (eps / rho).to(tl.float32)


@triton.jit
def totals(sum_a, sum_b, rows, columns, HAS_A: tl.constexpr, HAS_B: tl.constexpr):
    """Total masses. A side that is not given is uniform with the other side's total, or 1; an
    empty side holds nothing."""
    one = sum_a * 0.0 + 1.0
    if HAS_A:
        total_a = sum_a
    elif HAS_B:
        total_a = tl.where(rows > 0, sum_b, 0.0)
    else:
        total_a = tl.where(rows > 0, one, 0.0)
    if HAS_B:
        total_b = sum_b
    elif HAS_A:
        total_b = tl.where(columns > 0, sum_a, 0.0)
    else:
        total_b = tl.where(columns > 0, one, 0.0)
    return total_a, total_b


@triton.jit
def judge(
    total_a,
    total_b,
    rows,
    columns,
    eps,
    finite,
    negative,
    BALANCED_A: tl.constexpr,
    BALANCED_B: tl.constexpr,
):
    """status, whether to iterate (int32), the factor of b that makes the totals agree, total_b."""
    s = scale_of(eps)
    usable = (finite != 0) & is_finite(eps) & (eps > 0.0) & is_finite(s) & (s > 0.0)
    usable = usable & is_finite(total_a) & is_finite(total_b)
    nothing = (total_a == 0.0) | (total_b == 0.0)
    empty = (rows == 0) | (columns == 0)
    larger = tl.maximum(total_a, total_b)
    factor = total_a * 0.0 + 1.0
    if BALANCED_A and BALANCED_B:
        unequal = tl.abs(total_a - total_b) > larger * MISMATCH
        factor = tl.where(nothing, 1.0, total_a / tl.where(nothing, 1.0, total_b))
        total_b = tl.where(nothing | unequal, total_b, total_a)
    elif BALANCED_A:
        unequal = nothing & (total_a > 0.0)
    elif BALANCED_B:
        unequal = nothing & (total_b > 0.0)
    else:
        unequal = larger != larger
    infeasible = (negative != 0) | unequal | (empty & (larger > 0.0))
    status = tl.where(empty, EMPTY, CONVERGED)
    status = tl.where(infeasible, INFEASIBLE, status)
    status = tl.where(usable, status, NON_FINITE).to(tl.int32)
    live = (usable & ~infeasible & ~empty & ~nothing).to(tl.int32)
    return status, live, factor, total_b


@triton.jit
def left_over(total_a, total_b, rho_a, rho_b, BALANCED_A: tl.constexpr, BALANCED_B: tl.constexpr):
    """Value where nothing can be moved: each penalty is rho times the mass that stays."""
    left = total_a * 0.0
    if not BALANCED_A:
        left += rho_a * total_a
    if not BALANCED_B:
        left += rho_b * total_b
    return left


@triton.jit
def side_value(mass, f, rho, BALANCED: tl.constexpr):
    """Terms of <a, f>, or of -rho <a, expm1(-f / rho)>, in double; zero masses give nothing."""
    f = f.to(tl.float64)
    if BALANCED:
        term = f
    else:
        # exp in double loses 1e-16 rho, far below float32 of the sum.
        term = -rho * (tl.exp(-f / rho) - 1.0)
    return tl.where(mass > 0.0, mass.to(tl.float64) * term, 0.0)


@triton.jit
def potential(mass, u, log_mass, transform, k):
    """s f = u - log2 a; at zero mass the damped c-transform."""
    positive = mass > 0.0
    return tl.where(
        positive, tl.where(positive, u, 0.0) - tl.where(positive, log_mass, 0.0), -k * transform
    )


@triton.jit
def target(mass, log_mass, u, eps_over_rho, BALANCED: tl.constexpr):
    """The marginal that the rows are measured against: a, or a exp(-f / rho)."""
    if BALANCED:
        return mass
    else:
        positive = mass > 0.0
        moved = tl.where(positive, u, 0.0) - tl.where(positive, log_mass, 0.0)
        return tl.where(positive, mass * tl.exp2(-moved * eps_over_rho), 0.0)
