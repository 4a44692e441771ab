"""Batched entropic transport in the log domain: the specification that every kernel is held to.

    min_P <P, C> + eps KL(P | a x b) + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)

(rho = inf: the marginal is a constraint.) In units of log2, with s = log2(e) / eps and K = -s C,

    P_ij = exp2(K_ij + u_i + v_j),       u_i = s f_i + log2 a_i,       v_j = s g_j + log2 b_j,

and one iteration is

    u_i <- log2 a_i - rho_a / (rho_a + eps) * log2 sum_j exp2(K_ij + v_j),      then v likewise.

The functions have no gradient of their own (README.md of the family: envelope and implicit
gradients). Every problem is solved as if it were alone: those that are done are frozen by a mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkernels.transport.reference import iterate
from fedkernels.transport.reference.iterate import log2_sum_exp2, potential, target
from fedkernels.transport.reference.problem import (
    INFEASIBLE,
    MAX_ITER,
    NON_FINITE,
    Problems,
    prepare,
    scale_of,
    within,
)

# value, linear, f, g, u, v, r, c, n_iter, error, status
Solution = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]


def _side_value(mass: Tensor, f: Tensor, rho: float) -> Tensor:
    """<a, f>, or -rho <a, expm1(-f / rho)>, in double; zero masses contribute nothing."""
    f = f.double()
    term = f if math.isinf(rho) else -rho * torch.expm1(-f / rho)
    return torch.where(mass > 0, mass.double() * term, 0.0).sum(1)


def solve(
    cost: Tensor,
    p: Problems,
    g0: Tensor | None,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    *,
    sor: bool = False,
    symmetric: bool = False,
) -> Solution:
    """The eleven results of prepared problems; cost (B, n, m), 0 outside live ones."""
    s, dtype = p.scale, cost.dtype
    K = -(cost * s[:, None, None])
    v = p.log_b if g0 is None else p.log_b + s[:, None] * g0.expand_as(p.log_b)
    if p.valid.numel() == 0:  # an empty block has nothing to iterate, nor a largest entry
        u, passed = p.log_a, ~p.live
        n_iter = torch.zeros_like(p.live, dtype=torch.int32)
        f, g = torch.zeros_like(u), torch.zeros_like(v)
    else:
        v = torch.where(p.columns, v, -math.inf)
        if symmetric:
            u, v, n_iter, passed = iterate.symmetric(K, v, p, rho_a, max_iter, tol)
        elif sor:
            u, v, n_iter, passed = iterate.relaxed(K, v, p, max_iter, tol)
        else:
            u, v, n_iter, passed = iterate.plain(K, v, p, rho_a, max_iter, tol)
        f = potential(u, p.log_a, log2_sum_exp2(K + v[:, None, :], 2), p.damping_a, s)
        g = potential(v, p.log_b, log2_sum_exp2(K + u[:, :, None], 1), p.damping_b, s)
    return _finish(cost, K, p, (f, g, u, v), n_iter, passed, rho_a, rho_b, tol, dtype)


def _finish(
    cost: Tensor,
    K: Tensor,
    p: Problems,
    potentials: tuple[Tensor, Tensor, Tensor, Tensor],
    n_iter: Tensor,
    passed: Tensor,
    rho_a: float,
    rho_b: float,
    tol: float,
    dtype: torch.dtype,
) -> Solution:
    """Value, marginals, error and status of the plan that is returned."""
    f, g, u, v = potentials
    live = p.live[:, None]
    plan = torch.where(p.valid & live[:, :, None], (K + u[:, :, None] + v[:, None, :]).exp2(), 0.0)
    r, c = plan.sum(2), plan.sum(1)
    f, g = (torch.where(live, side, 0.0) for side in (f, g))
    error = (r - target(p.a, f, rho_a)).abs().sum(1)
    linear = (plan.double() * cost.double()).sum((1, 2))
    value = _side_value(p.a, f, rho_a) + _side_value(p.b, g, rho_b)
    value = value - p.eps * (plan.double().sum((1, 2)) - p.total_a * p.total_b)

    # Without a plan (one side holds no mass) each penalty is rho times the mass that stays.
    u, v = (torch.where(live, side, -math.inf) for side in (u, v))
    left = torch.zeros_like(value)
    for rho, total in ((rho_a, p.total_a), (rho_b, p.total_b)):
        left = left if math.isinf(rho) else left + rho * total
    value, error = torch.where(p.live, value, left), torch.where(p.live, error, 0.0)
    value, linear = value.to(dtype), linear.to(dtype)

    # Finite inputs whose products leave the range of the dtype end here too.
    overflow = p.live & ~(value.isfinite() & linear.isfinite() & error.isfinite())
    # What stopped is believed as far as rounding reaches.
    rounding = 0.1 * math.sqrt(torch.finfo(dtype).eps) * p.total_a
    passed = passed & (error <= tol + rounding)
    status = torch.where(p.live & ~passed, MAX_ITER, p.status).masked_fill(overflow, NON_FINITE)
    bad = (status == NON_FINITE) | (status == INFEASIBLE)
    value, linear, error = (t.masked_fill(bad, math.nan) for t in (value, linear, error))
    f, u, r = (_mark(t, bad, p.rows) for t in (f, u, r))
    g, v, c = (_mark(t, bad, p.columns) for t in (g, v, c))
    n_iter = n_iter.masked_fill(bad, 0)
    return value, linear, f, g, u, v, r, c, n_iter, error, status.to(torch.uint8)


def _mark(side: Tensor, bad: Tensor, valid: Tensor) -> Tensor:
    """NaN in the valid part of a problem without a solution, 0 in the padding of every problem."""
    return side.masked_fill(bad[:, None], math.nan).masked_fill(~valid, 0.0)


@torch.no_grad()
def sinkhorn_forward(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    batch: int,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    log: bool,
    sor: bool,
) -> Solution:
    """Solve ``batch`` problems: value, linear, f, g, u, v, r, c, n_iter, error, status.

    cost (B|1, n, m), a (B|1, n) or None, b (B|1, m) or None, eps (B|1,) float64, sizes (B, 2) int64
    or None, g0 (B|1, m) or None (0). A leading 1 is shared by all problems. ``log`` is how every
    iteration here is computed.

    ``error`` is the L1 error of the rows of the returned plan. An iteration whose pair is within
    ``tol`` is the last one (CONVERGED); tol = 0 runs ``max_iter`` and ends MAX_ITER. A problem with
    a side of no mass has no plan: f = g = 0, u = v = -inf, n_iter 0, and its value is what the
    penalties leave (0 where balanced). NON_FINITE and INFEASIBLE problems are NaN in their valid
    part.
    """
    n, m = cost.shape[-2:]
    rows, columns = (within(sizes, i, batch, k, cost.device) for i, k in ((0, n), (1, m)))
    finite = (cost.isfinite() | ~(rows[:, :, None] & columns[:, None, :])).flatten(1).all(1)
    p = prepare(a, b, eps, sizes, g0, (batch, n, m), (rho_a, rho_b), finite, cost.dtype)
    cost = torch.where(p.valid & p.live[:, None, None], cost, 0.0)
    return solve(cost, p, g0, rho_a, rho_b, max_iter, tol, sor=sor)


@torch.no_grad()
def sinkhorn_plan(
    cost: Tensor, eps: Tensor, sizes: Tensor | None, u: Tensor, v: Tensor, scale: Tensor | None
) -> Tensor:
    """scale_b exp2(K + u_i + v_j) (B, n, m); 0 in the padding and wherever scale_b is 0."""
    batch, n, m = len(u), *cost.shape[-2:]
    s = scale_of(eps, cost.dtype)[:, None, None]
    plan = (-(cost * s) + u[:, :, None] + v[:, None, :]).exp2()
    if scale is not None:
        factor = scale[:, None, None]
        plan = torch.where(factor == 0, 0.0, factor * plan)
    if sizes is None:
        return plan
    rows, columns = (within(sizes, i, batch, k, cost.device) for i, k in ((0, n), (1, m)))
    return torch.where(rows[:, :, None] & columns[:, None, :], plan, 0.0)


@torch.no_grad()
def sinkhorn_apply(
    cost: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    u: Tensor,
    v: Tensor,
    V: Tensor,
    transpose: bool,
) -> Tensor:
    """P V (B, n, d) for V (B, m, d), or P^T V (B, m, d) for V (B, n, d)."""
    return apply_plan(sinkhorn_plan(cost, eps, sizes, u, v, None), sizes, V, transpose)


def apply_plan(plan: Tensor, sizes: Tensor | None, V: Tensor, transpose: bool) -> Tensor:
    """P V or P^T V without the padding of V; in double on a GPU, where TF32 could be on."""
    inside = within(sizes, 0 if transpose else 1, len(plan), V.shape[1], V.device)
    V = torch.where(inside[:, :, None], V, 0.0)
    plan = plan.mT if transpose else plan
    if plan.is_cuda:
        return (plan.double() @ V.double()).to(V.dtype)
    return plan @ V


__all__ = ["sinkhorn_apply", "sinkhorn_forward", "sinkhorn_plan"]
