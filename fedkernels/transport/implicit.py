"""Implicit gradients of losses on the plan, from a cost matrix.

At the solution P_ij = exp2(K_ij + u_i + v_j), r = P 1 and c = P^T 1; with k = eps / rho each
potential obeys (1 + k) log a_i - k u_i = log r_i (balanced: k = 0, r = a). For G = dL/dP the
adjoint system is

    r (1 + k_a) alpha + P beta   = (G * P) 1
    P^T alpha + c (1 + k_b) beta = (G * P)^T 1

and the gradients are

    dC = -(1/eps) P * (G - alpha - beta)
    da = exp(-f / rho_a) (1 + k_a) alpha        db = exp(-g / rho_b) (1 + k_b) beta
    d eps = <P * C, G - alpha - beta> / eps^2 - (<alpha, r f> / rho_a + <beta, c g> / rho_b) / eps

(exp(-f / rho) is r / a at the solution, and 1 where balanced.) Balanced systems have the null
vector (1, -1): alpha and beta are defined up to a constant between the two sides.

No mass is divided by. A row whose mass is 0, or so small that it moves nothing else, leaves the
system; its alpha follows from its own equation divided by its mass, in which P_i / a_i is the row
of the plan at the *lifted* potentials (`lift`), finite at a_i = 0.

The dense system is solved by a Cholesky factor of the Schur complement on the shorter side, in
double. For points see ``implicit_points.py``. How to call, for the op or its reference:

    u_, v_ = lift(u, f, eps, sizes, 0), lift(v, g, eps, sizes, 1)
    plan = primitives.sinkhorn_plan(cost, eps, sizes, u_.lifted, v_.lifted, None)
    gradients = plan_gradients(plan, G, cost, u_, v_, f, g, eps, rho_a, rho_b, ok)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Adjoint", "Gradients", "Lifted", "lift", "linear_gradients", "plan_gradients"]

# A row of less than 2^-80 of the largest mass moves no other entry of the solution, in double.
_SMALL = -80.0


class Lifted(NamedTuple):
    """One side's potential in log2 units, with and without the rows of (nearly) no mass."""

    lifted: Tensor  # u; s f (the potential of mass 1) in small rows
    kept: Tensor  # u; -inf in small rows: they are no part of the system
    small: Tensor  # bool; never in the padding


class Adjoint(NamedTuple):
    """The solution of the adjoint system, in double."""

    alpha: Tensor  # (B, n), 0 in the padding
    beta: Tensor  # (B, m)
    residual: Tensor  # (B,) L1 norm of what is left of the system, relative to its right side


class Gradients(NamedTuple):
    cost: Tensor  # (B, n, m), per problem also where the cost is shared
    a: Tensor  # (B, n)
    b: Tensor  # (B, m)
    eps: Tensor  # (B,) float64
    residual: Tensor  # (B,) float64


def lift(u: Tensor, f: Tensor, eps: Tensor, sizes: Tensor | None, side: int) -> Lifted:
    """Split a potential by mass, log2 a_i = u_i - s f_i; side 0 or 1 of ``sizes``."""
    scaled = f.double() * (math.log2(math.e) / eps)[:, None]
    log_mass = u.double() - scaled
    if sizes is not None:
        inside = torch.arange(u.shape[1], device=u.device) < sizes[:, side, None]
        log_mass = log_mass.masked_fill(~inside, -math.inf)
    else:
        inside = torch.ones_like(u, dtype=torch.bool)
    if u.shape[1] == 0:
        return Lifted(u, u, inside)
    largest = log_mass.amax(1, keepdim=True)
    small = inside & ((u == -math.inf) | (log_mass < largest + _SMALL))
    lifted = torch.where(small, scaled.to(u.dtype), u)
    return Lifted(lifted, u.masked_fill(small, -math.inf), small)


def relative_damping(eps: Tensor, rho: float) -> Tensor:
    """1 + eps / rho (B, 1), 1 for a balanced side."""
    return (torch.ones_like(eps) if math.isinf(rho) else 1 + eps / rho)[:, None]


def mass_ratio(f: Tensor, rho: float) -> Tensor:
    """r / a at the solution: exp(-f / rho), 1 for a balanced side."""
    f = f.double()
    return torch.ones_like(f) if math.isinf(rho) else (-f / rho).exp()


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def _schur(P: Tensor, rows: Tensor, columns: Tensor, row: Tensor, column: Tensor, gauge: bool):
    """(alpha, beta) of the kept rows by elimination of alpha; rows = r (1 + k_a), columns likewise.

    Scaled by the square root of its diagonal the complement is I - A, A's eigenvalues in [0, 1);
    the gauge moves the null vector of a balanced problem to eigenvalue 1: no pivoting is needed.
    """
    m = P.shape[2]
    softmax = over(P, rows[:, :, None])
    eliminated = over(row, rows)
    root = columns.sqrt()
    scaled = over(torch.ones_like(root), root)
    matrix = torch.eye(m, dtype=P.dtype, device=P.device) - (
        scaled[:, :, None] * (P.mT @ softmax) * scaled[:, None, :]
    )
    if gauge:
        null = over(root, torch.linalg.vector_norm(root, dim=1, keepdim=True))
        matrix = matrix + null[:, :, None] * null[:, None, :]
    # A plan that falls apart into blocks has further null vectors: the right side has no part in
    # them, and the ridge, of the size of the rounding, keeps the factor real.
    ridge = 8 * (m + 8) * torch.finfo(P.dtype).eps
    factor = torch.linalg.cholesky_ex(
        matrix + ridge * torch.eye(m, dtype=P.dtype, device=P.device)
    ).L
    right = (scaled * (column - (P.mT @ eliminated[:, :, None]).squeeze(2)))[:, :, None]
    solution = torch.cholesky_solve(right, factor)
    solution = solution + torch.cholesky_solve(right - matrix @ solution, factor)
    beta = scaled * solution.squeeze(2)
    return eliminated - (softmax @ beta[:, :, None]).squeeze(2), beta


def solve_dense(
    plan: Tensor, G: Tensor, small_a: Tensor, small_b: Tensor, k_a: Tensor, k_b: Tensor, gauge: bool
) -> Adjoint:
    """The adjoint for plan (B, n, m) at lifted potentials and G (B, n, m), both in double.

    k_a, k_b (B, 1) are 1 + eps / rho. ``gauge`` says that both sides are balanced.
    """
    of_rows = plan.masked_fill(small_b[:, None, :], 0.0)  # the plan, and a^-1 P in small rows
    of_columns = plan.masked_fill(small_a[:, :, None], 0.0)
    P = of_rows.masked_fill(small_a[:, :, None], 0.0)
    weighted = G * P
    row, column = weighted.sum(2), weighted.sum(1)
    rows, columns = k_a * P.sum(2), k_b * P.sum(1)
    if plan.shape[1] >= plan.shape[2]:
        alpha, beta = _schur(P, rows, columns, row, column, gauge)
    else:
        beta, alpha = _schur(P.mT, columns, rows, column, row, gauge)

    left = rows * alpha + (P @ beta[:, :, None]).squeeze(2) - row
    left_columns = columns * beta + (P.mT @ alpha[:, :, None]).squeeze(2) - column
    size = row.abs().sum(1) + column.abs().sum(1)
    residual = over(left.abs().sum(1) + left_columns.abs().sum(1), size)

    # Rows outside the system: each from its own equation, over its mass.
    own = (of_rows * (G - beta[:, None, :])).sum(2)
    alpha = torch.where(small_a, over(own, k_a * of_rows.sum(2)), alpha)
    kept_alpha = alpha.masked_fill(small_a, 0.0)
    own = (of_columns * (G - kept_alpha[:, :, None])).sum(1)
    beta = torch.where(small_b, over(own, k_b * of_columns.sum(1)), beta)
    return Adjoint(alpha, beta, residual)


def eps_gradient(
    direct: Tensor, adjoint: Adjoint, r: Tensor, c: Tensor, f: Tensor, g: Tensor, eps: Tensor,
    rho_a: float, rho_b: float,
) -> Tensor:  # fmt: skip
    """d eps (B,), with ``direct`` = <P * C, G - alpha - beta>."""
    grad = direct / (eps * eps)
    for multiplier, marginal, potential, rho in (
        (adjoint.alpha, r, f, rho_a),
        (adjoint.beta, c, g, rho_b),
    ):
        if not math.isinf(rho):
            grad = grad - (multiplier * marginal * potential.double()).sum(1) / (rho * eps)
    return grad


def plan_gradients(
    plan: Tensor,
    G: Tensor,
    cost: Tensor,
    u: Lifted,
    v: Lifted,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    rho_a: float,
    rho_b: float,
    ok: Tensor,
    direct: Tensor | None = None,
) -> Gradients:
    """Gradients of a loss with dL/dP = G (B, n, m) to cost, masses and eps.

    plan (B, n, m): the plan at the lifted potentials; cost (B|1, n, m); f (B, n), g (B, m), eps
    (B,) float64; ok (B,) bool: problems with a solution, all others get zeros. ``direct`` (B,) is
    the weight of <P, C> where the loss depends on C itself: it adds direct * P to dC.
    Results in the plan's dtype but eps and residual. O(B (n m s + s^3)), s = min(n, m).
    """
    dtype, inside = plan.dtype, ok[:, None, None]
    eps = eps.expand(len(plan))
    eps = torch.where(ok, eps, 1.0)
    wide = torch.where(inside, plan.double(), 0.0)
    G = torch.where(inside, G.double(), 0.0)
    C = torch.where(inside & (wide != 0), cost.double(), 0.0)
    f, g = (torch.where(ok[:, None], side, 0.0) for side in (f, g))
    k_a, k_b = relative_damping(eps, rho_a), relative_damping(eps, rho_b)
    balanced = math.isinf(rho_a) and math.isinf(rho_b)
    adjoint = solve_dense(wide, G, u.small, v.small, k_a, k_b, balanced)

    P = wide.masked_fill(u.small[:, :, None] | v.small[:, None, :], 0.0)
    weight = P * (G - adjoint.alpha[:, :, None] - adjoint.beta[:, None, :])
    grad_cost = -weight / eps[:, None, None]
    if direct is not None:
        grad_cost = grad_cost + torch.where(ok, direct, 0.0)[:, None, None] * P
    grad_eps = eps_gradient(
        (weight * C).sum((1, 2)), adjoint, P.sum(2), P.sum(1), f, g, eps, rho_a, rho_b
    )
    return Gradients(
        grad_cost.to(dtype),
        (mass_ratio(f, rho_a) * k_a * adjoint.alpha).to(dtype),
        (mass_ratio(g, rho_b) * k_b * adjoint.beta).to(dtype),
        grad_eps,
        adjoint.residual,
    )


def linear_gradients(
    plan: Tensor,
    weight: Tensor,
    cost: Tensor,
    u: Lifted,
    v: Lifted,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    rho_a: float,
    rho_b: float,
    ok: Tensor,
) -> Gradients:
    """Gradients of sum_b weight_b <P_b, C_b>: `plan_gradients` with G = weight C, and weight P."""
    weight = torch.where(ok, weight, 0.0)
    # A forbidden cell (infinite or overflowing cost) holds no plan and asks for none.
    G = torch.where(plan != 0, weight[:, None, None].double() * cost.double(), 0.0)
    return plan_gradients(plan, G, cost, u, v, f, g, eps, rho_a, rho_b, ok, direct=weight)
