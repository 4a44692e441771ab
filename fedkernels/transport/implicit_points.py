"""Implicit gradients of <P, C> for points, without a matrix of n x m.

The adjoint system of ``implicit.py`` for G = C, by conjugate gradients on the Schur complement

    (diag(c') - P^T diag(1 / r') P) beta = (P * C)^T 1 - P^T ((P * C) 1 / r')

with r' = r (1 + k_a) and c' = c (1 + k_b), scaled by the square root of its diagonal, and with the
null vector of a balanced problem projected out.
A step is two products with the plan (``sinkhorn_points_apply``). The right side needs the sums of
P * C, which no product gives for every metric: they are taken over slices of rows of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkernels.transport.implicit import (
    Adjoint,
    Lifted,
    eps_gradient,
    mass_ratio,
    over,
    relative_damping,
)
from fedkernels.transport.reference.points import pairwise_cost

__all__ = ["LinearAdjoint", "linear_adjoint"]

# Entries of the plan that are held at a time (64 MiB in float32).
_ENTRIES = 1 << 24
# What a product with a plan in the dtype can reach, relative to the right side.
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class LinearAdjoint(NamedTuple):
    """What the gradients of weight * <P, C> are made of; the weight is the caller's to multiply.

    dx, dy = sinkhorn_points_backward(x, y, eps, sizes, metric, u.kept, v.kept, weight, weight * w1,
                                      weight[:, None] * alpha, weight[:, None] * beta)
    """

    w1: Tensor  # (B,) -1 / eps
    alpha: Tensor  # (B, n) alpha / eps
    beta: Tensor  # (B, m) beta / eps
    a: Tensor  # (B, n) gradient to the masses
    b: Tensor  # (B, m)
    eps: Tensor  # (B,) float64, gradient to eps
    residual: Tensor  # (B,) float64, as in implicit.Adjoint


class _Moments(NamedTuple):
    row: Tensor  # (B, n) sum_j P_ij C_ij over the kept columns
    column: Tensor  # (B, m) sum_i P_ij C_ij over the kept rows
    square: Tensor  # (B,) sum P C^2 over both


def _slices(
    x: Tensor, y: Tensor, sizes: Tensor | None, n: int, batch: int
) -> Iterator[tuple[slice, Tensor | None]]:
    """Rows that are held at a time, and the sizes of what is left of each problem there."""
    step = max(1, _ENTRIES // max(1, batch * y.shape[1]))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        left = sizes
        if sizes is not None:
            left = sizes.clone()
            left[:, 0] = (sizes[:, 0] - start).clamp(0, part.stop - start)
        yield part, left


def _moments(
    primitives: Any,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Lifted,
    v: Lifted,
) -> _Moments:
    batch, n = u.lifted.shape
    rows, column = [], torch.zeros_like(v.lifted, dtype=torch.float64)
    square = torch.zeros(batch, dtype=torch.float64, device=x.device)
    for part, left in _slices(x, y, sizes, n, batch):
        points = x[:, part].contiguous()
        plan = primitives.sinkhorn_points_plan(
            points, y, eps, left, metric, u.lifted[:, part].contiguous(), v.lifted, None
        )
        cost = pairwise_cost(points, y, metric, left)
        plan, cost = plan.double(), torch.where(plan != 0, cost, 0.0).double()
        weighted = plan * cost
        kept = weighted.masked_fill(v.small[:, None], 0.0)
        rows.append(kept.sum(2))
        column += weighted.masked_fill(u.small[:, part, None], 0.0).sum(1)
        square += (kept * cost).masked_fill(u.small[:, part, None], 0.0).sum((1, 2))
    row = torch.cat(rows, 1) if rows else torch.zeros_like(u.lifted, dtype=torch.float64)
    return _Moments(row, column, square)


def _conjugate_gradients(
    operator: Callable[[Tensor], Tensor], right: Tensor, tol: float, max_iter: int
) -> Tensor:
    """x (B, k) with operator(x) = right, each problem frozen once its residual is small enough.

    On a GPU, where a look whether all are done would have to wait, and compiled, all ``max_iter``
    steps run.
    """
    looks = right.device.type == "cpu" and not torch.compiler.is_compiling()
    solution, residual, direction = torch.zeros_like(right), right, right
    square = (right * right).sum(1)
    goal = tol * tol * square
    active = square > 0
    for _ in range(max_iter):
        if looks and not bool(active.any()):
            break
        product = operator(direction)
        curvature = (direction * product).sum(1)
        # Rounding can end the descent before the goal does.
        active = active & (curvature > 0)
        step = torch.where(active, over(square, curvature), 0.0)[:, None]
        solution, residual = solution + step * direction, residual - step * product
        following = (residual * residual).sum(1)
        direction = residual + over(following, square)[:, None] * direction
        square = torch.where(active, following, square)
        active = active & (square > goal)
    return solution


def linear_adjoint(
    primitives: Any,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Lifted,
    v: Lifted,
    f: Tensor,
    g: Tensor,
    rho_a: float,
    rho_b: float,
    ok: Tensor,
    *,
    tol: float | None = None,
    max_iter: int = 200,
) -> LinearAdjoint:
    """Solve for the gradients of <P, C>; ``primitives`` are a backend's ops or the reference.

    x (B|1, n, D), y (B|1, m, D), f (B, n), g (B, m), eps (B|1,) float64; ok (B,) bool: problems
    with a solution, all others get zeros. O((n + m) D) memory beside the slices, O(n m D) a step.
    """
    dtype = u.lifted.dtype
    u, v = (_without(side, ok) for side in (u, v))
    f, g = (torch.where(ok[:, None], side, 0.0) for side in (f, g))
    wide_eps = torch.where(ok, eps.expand(len(ok)), 1.0)
    k_a, k_b = relative_damping(wide_eps, rho_a), relative_damping(wide_eps, rho_b)

    def times(left: Tensor, right: Tensor, vector: Tensor, transpose: bool = False) -> Tensor:
        columns = vector.to(dtype)[:, :, None].contiguous()
        product = primitives.sinkhorn_points_apply(
            x, y, eps, sizes, metric, left, right, columns, transpose
        )
        return torch.where(ok[:, None], product.squeeze(2).double(), 0.0)

    # Sums over the kept part of the other side; in small rows of P / a.
    r = k_a * times(u.lifted, v.kept, torch.ones_like(g))
    c = k_b * times(u.kept, v.lifted, torch.ones_like(f), True)
    moments = _moments(primitives, x, y, eps, sizes, metric, u, v)
    row = torch.where(ok[:, None], moments.row, 0.0)
    column = torch.where(ok[:, None], moments.column, 0.0)
    rows, columns = r.masked_fill(u.small, 0.0), c.masked_fill(v.small, 0.0)
    kept_row, kept_column = row.masked_fill(u.small, 0.0), column.masked_fill(v.small, 0.0)

    root = columns.sqrt()
    scaled = over(torch.ones_like(root), root)
    null = over(root, torch.linalg.vector_norm(root, dim=1, keepdim=True))
    balanced = math.isinf(rho_a) and math.isinf(rho_b)

    def in_range(vector: Tensor) -> Tensor:
        return vector - null * (null * vector).sum(1, keepdim=True) if balanced else vector

    def complement(vector: Tensor) -> Tensor:
        through = over(times(u.kept, v.kept, scaled * vector), rows)
        return in_range(vector - scaled * times(u.kept, v.kept, through, True))

    through = over(kept_row, rows)
    right = in_range(scaled * (kept_column - times(u.kept, v.kept, through, True)))
    tol = _TOLERANCE[dtype] if tol is None else tol
    beta = scaled * _conjugate_gradients(complement, right, tol, max_iter)

    # Each row from its own equation, also the small ones; then the small columns.
    alpha = over(row - times(u.lifted, v.kept, beta), r)
    kept_alpha = alpha.masked_fill(u.small, 0.0)
    left = columns * beta + times(u.kept, v.kept, kept_alpha, True) - kept_column
    residual = over(left.abs().sum(1), kept_row.abs().sum(1) + kept_column.abs().sum(1))
    own = over(column - times(u.kept, v.lifted, kept_alpha, True), c)
    adjoint = Adjoint(alpha, torch.where(v.small, own, beta), residual)

    kept = Adjoint(kept_alpha, beta, residual)
    direct = torch.where(ok, moments.square, 0.0)
    direct = direct - (kept_alpha * kept_row).sum(1) - (beta * kept_column).sum(1)
    grad_eps = eps_gradient(direct, kept, rows / k_a, columns / k_b, f, g, wide_eps, rho_a, rho_b)
    return LinearAdjoint(
        (-1 / wide_eps).to(dtype),
        (kept_alpha / wide_eps[:, None]).to(dtype),
        (beta / wide_eps[:, None]).to(dtype),
        (mass_ratio(f, rho_a) * k_a * adjoint.alpha).to(dtype),
        (mass_ratio(g, rho_b) * k_b * adjoint.beta).to(dtype),
        grad_eps,
        residual,
    )


def _without(side: Lifted, ok: Tensor) -> Lifted:
    """No NaN where there is no solution: a potential of -inf, and no row that is small."""
    keep = ok[:, None]
    return Lifted(
        torch.where(keep, side.lifted, -math.inf),
        torch.where(keep, side.kept, -math.inf),
        side.small & keep,
    )
