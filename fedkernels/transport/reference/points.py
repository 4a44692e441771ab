"""Sinkhorn between points x (B|1, n, D) and y (B|1, m, D), with the cost matrix written out.

metric 0: |x - y|^2; 1: |x - y|; 2: 1 - cos(x, y), which is 1 for a zero vector. The specification
of the values and of the gradients; the kernels never hold a matrix of n x m. Points
are centred before the expansion |x|^2 + |y|^2 - 2 x.y, which never goes below 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels.transport.reference.problem import prepare, within
from fedkernels.transport.reference.sinkhorn import (
    Solution,
    apply_plan,
    sinkhorn_plan,
    solve,
)

SQEUCLIDEAN, EUCLIDEAN, COSINE = range(3)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right; in double on a GPU, where TF32 could be on."""
    if left.is_cuda:
        return (left.double() @ right.double()).to(left.dtype)
    return left @ right


def _inside(
    x: Tensor, y: Tensor, sizes: Tensor | None, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y without their padding, and the masks (B, n), (B, m)."""
    rows = within(sizes, 0, batch, x.shape[1], x.device)
    columns = within(sizes, 1, batch, y.shape[1], x.device)
    x, y = torch.where(rows[:, :, None], x, 0.0), torch.where(columns[:, :, None], y, 0.0)
    return x, y, rows, columns


def _prepared(x: Tensor, y: Tensor, sizes: Tensor | None, metric: int, batch: int) -> list[Tensor]:
    """Both point sets as the metric reads them: centred, or of length 1 (0 for a zero vector)."""
    x, y, rows, columns = _inside(x, y, sizes, batch)
    if metric == COSINE:
        return [_unit(side) for side in (x, y)]
    count = (rows.sum(1) + columns.sum(1)).clamp(min=1)[:, None]
    centre = ((x.double().sum(1) + y.double().sum(1)) / count).to(x.dtype)[:, None]
    return [
        torch.where(mask[:, :, None], side - centre, 0.0)
        for side, mask in ((x, rows), (y, columns))
    ]


def _length(x: Tensor) -> Tensor:
    """|x| in double, so that no square leaves the range."""
    return torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    length = _length(x)
    return (x.double() / torch.where(length == 0, 1.0, length)).to(x.dtype)


def _cost(x: Tensor, y: Tensor, metric: int) -> Tensor:
    """The cost (B, n, m) of points that are prepared."""
    if metric == COSINE:
        return (1 - _product(x, y.mT)).clamp(min=0)
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    cost = (squares - 2 * _product(x, y.mT)).clamp(min=0)
    return cost.sqrt() if metric == EUCLIDEAN else cost


def pairwise_cost(x: Tensor, y: Tensor, metric: int, sizes: Tensor | None = None) -> Tensor:
    """The cost matrix (B, n, m) of x (B|1, n, D) and y (B|1, m, D).

    >>> pairwise_cost(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 4.0]]]), 1).tolist()
    [[[5.0]]]
    """
    batch = max(len(x), len(y)) if sizes is None else len(sizes)
    x, y = _prepared(x, y, sizes, metric, batch)
    return _cost(x, y, metric)


@torch.no_grad()
def sinkhorn_points_forward(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    batch: int,
    metric: int,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    sor: bool,
    symmetric: bool,
) -> Solution:
    """`sinkhorn_forward` for points: the same eleven results.

    ``symmetric`` promises y = x, b = a and rho_b = rho_a, and iterates the average (f + T f) / 2 of
    one potential; y and b are not read then. A NaN or Inf in a valid point is NON_FINITE.
    """
    if symmetric:
        y, b = x, a
    shape = (batch, x.shape[1], y.shape[1])
    x, y, rows, columns = _inside(x, y, sizes, batch)
    finite = x.isfinite().flatten(1).all(1) & y.isfinite().flatten(1).all(1)
    cost = pairwise_cost(x, y, metric, sizes)
    finite = finite & (cost.isfinite() | ~(rows[:, :, None] & columns[:, None, :])).flatten(1).all(
        1
    )
    p = prepare(a, b, eps, sizes, g0, shape, (rho_a, rho_b), finite, x.dtype)
    cost = torch.where(p.valid & p.live[:, None, None], cost, 0.0)
    return solve(cost, p, g0, rho_a, rho_b, max_iter, tol, sor=sor, symmetric=symmetric)


@torch.no_grad()
def sinkhorn_points_plan(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """`sinkhorn_plan` for points: scale_b exp2(K + u_i + v_j) (B, n, m)."""
    return sinkhorn_plan(pairwise_cost(x, y, metric, sizes), eps, sizes, u, v, scale)


@torch.no_grad()
def sinkhorn_points_apply(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    V: Tensor,
    transpose: bool,
) -> Tensor:
    """P V (B, n, d) for V (B, m, d), or P^T V (B, m, d) for V (B, n, d)."""
    plan = sinkhorn_points_plan(x, y, eps, sizes, metric, u, v, None)
    return apply_plan(plan, sizes, V, transpose)


def cost_backward(
    x: Tensor, y: Tensor, metric: int, W: Tensor, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """dx_i = sum_j W_ij dC_ij/dx_i (B, n, D) and dy_j = sum_i W_ij dC_ij/dy_j (B, m, D).

    W (B, n, m), the gradient of the cost matrix, is 0 in the padding. The gradient of a Euclidean
    distance of 0 is 0, and so is that of a cosine at a zero vector.
    """
    x_, y_ = _prepared(x, y, sizes, metric, len(W))
    if metric == COSINE:
        return _cosine_backward(x, y, x_, y_, W, sizes)
    if metric == EUCLIDEAN:
        cost = _cost(x_, y_, metric)
        W = torch.where(cost > 0, W / cost, 0.0) / 2
    dx = 2 * (W.sum(2)[:, :, None] * x_ - _product(W, y_))
    dy = 2 * (W.sum(1)[:, :, None] * y_ - _product(W.mT, x_))
    return dx, dy


def _cosine_backward(
    x: Tensor, y: Tensor, x_: Tensor, y_: Tensor, W: Tensor, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """d(1 - cos)/dx = -(y_ - cos x_) / |x| for x_ = x / |x| and y_ = y / |y|."""
    weighted = W * _product(x_, y_.mT)
    dx = weighted.sum(2)[:, :, None] * x_ - _product(W, y_)
    dy = weighted.sum(1)[:, :, None] * y_ - _product(W.mT, x_)
    x, y, _, _ = _inside(x, y, sizes, len(W))
    lengths = [_length(side).to(W.dtype) for side in (x, y)]
    dx, dy = (
        torch.where(length == 0, 0.0, side / torch.where(length == 0, 1.0, length))
        for side, length in zip((dx, dy), lengths, strict=True)
    )
    return dx, dy


@torch.no_grad()
def sinkhorn_points_backward(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    w0: Tensor,
    w1: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`cost_backward` with W_ij = P_ij (w0 + w1 C_ij + alpha_i + beta_j); w0, w1 (B,).

    alpha (B, n) and beta (B, m) are None for 0. A problem whose weights are all 0 gets zeros,
    whatever its plan and its points hold. The results are per problem also for shared points.
    """
    cost = pairwise_cost(x, y, metric, sizes).expand(len(u), -1, -1)
    weight = w0[:, None, None] + w1[:, None, None] * cost
    asked = (w0 != 0) | (w1 != 0)
    if alpha is not None:
        weight = weight + alpha[:, :, None]
        asked = asked | (alpha != 0).any(1)
    if beta is not None:
        weight = weight + beta[:, None, :]
        asked = asked | (beta != 0).any(1)
    W = weight * sinkhorn_plan(cost, eps, sizes, u, v, None)
    W = W if sizes is None else torch.where(_valid(sizes, W), W, 0.0)
    dx, dy = cost_backward(x, y, metric, W, sizes)
    return (
        torch.where(asked[:, None, None], dx, 0.0),
        torch.where(asked[:, None, None], dy, 0.0),
    )


def _valid(sizes: Tensor, W: Tensor) -> Tensor:
    batch, n, m = W.shape
    rows, columns = (within(sizes, i, batch, k, W.device) for i, k in ((0, n), (1, m)))
    return rows[:, :, None] & columns[:, None, :]
