"""The reference for points: its costs, its gradients, the symmetric iteration, over-relaxation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels.transport import reference
from fedkernels.transport.reference.points import pairwise_cost
from tests.ops.transport.problems import (
    CONVERGED,
    NON_FINITE,
    Solved,
    cost_of,
    eps_of,
    masses_of,
    plan_of,
    solve,
)

pytestmark = pytest.mark.once

INF, NAN = math.inf, math.nan
METRICS = [0, 1, 2]


def points(batch, n, dim=3, seed=0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, dim, generator=generator, dtype=torch.float64).to(dtype)


def direct(x: Tensor, y: Tensor, metric: int) -> Tensor:
    """The costs by differences, an ordinary differentiable expression."""
    if metric == 2:
        x, y = (torch.nn.functional.normalize(side, dim=-1) for side in (x, y))
        return 1 - x @ y.mT
    squares = (x[:, :, None] - y[:, None]).square().sum(-1)
    return squares if metric == 0 else squares.sqrt()


def solve_points(
    x, y, a=None, b=None, eps=0.5, *, sizes=None, metric=0, rho=(INF, INF), max_iter=5000,
    tol=1e-12, sor=False, symmetric=False,
) -> Solved:  # fmt: skip
    batch = max(len(x), len(y))
    sizes = None if sizes is None else torch.tensor(sizes)
    return Solved(
        *reference.sinkhorn_points_forward(
            x, y, a, b, eps_of(eps), sizes, None, batch, metric, *rho, max_iter, tol, sor, symmetric
        )
    )


@pytest.mark.parametrize("metric", METRICS)
def test_costs(metric):
    x, y = points(2, 5), points(2, 7, seed=1)
    torch.testing.assert_close(pairwise_cost(x, y, metric), direct(x, y, metric))
    torch.testing.assert_close(
        pairwise_cost(x[:1], y, metric), direct(x[:1].expand(2, -1, -1), y, metric)
    )
    # Points far from the origin lose nothing that float32 can hold: only differences count.
    far = torch.full((3,), 1000.0 if metric < 2 else 0.0)
    near = pairwise_cost((x + far).float(), (y + far).float(), metric).double()
    exact = direct((x + far).float().double(), (y + far).float().double(), metric)
    torch.testing.assert_close(near, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_costs_of_special_points(metric):
    x = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]])
    cost = pairwise_cost(x, x, metric)[0]
    assert cost[1, 1].item() == pytest.approx(0.0, abs=1e-3 if metric == 1 else 1e-6)
    assert (cost >= 0).all()
    if metric == 2:
        assert cost[0].tolist() == [1.0, 1.0]
        huge = torch.tensor([[[1e30, 1e30], [1e-30, 1e-30]]])
        torch.testing.assert_close(pairwise_cost(huge, huge, 2), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rho", [(INF, INF), (2.0, INF)])
def test_the_same_as_with_the_matrix(metric, rho):
    x, y, sizes = points(2, 5), points(2, 7, seed=1), [[5, 7], [2, 3]]
    cost = direct(x, y, metric)
    x[1, 2:], y[1, 3:] = NAN, INF
    ours = solve_points(x, y, sizes=sizes, metric=metric, rho=rho)
    theirs = solve(cost, eps=0.5, sizes=sizes, rho=rho)
    for name in ("value", "linear", "f", "g", "r", "c"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    plan = reference.sinkhorn_points_plan(
        x, y, eps_of(0.5), torch.tensor(sizes), metric, ours.u, ours.v, None
    )
    torch.testing.assert_close(plan, plan_of(cost, theirs, 0.5, sizes))
    V = points(2, 7, 4)
    product = reference.sinkhorn_points_apply(
        x, y, eps_of(0.5), torch.tensor(sizes), metric, ours.u, ours.v, V, False
    )
    torch.testing.assert_close(product, plan @ V)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [False, True])
def test_backward_is_the_gradient_of_the_weighted_cost(metric, shared):
    x, y = points(1 if shared else 2, 5), points(2, 7, seed=1)
    sizes = torch.tensor([[5, 7], [3, 4]])
    w0, w1 = torch.tensor([0.7, -1.1]).double(), torch.tensor([0.3, 0.0]).double()
    alpha, beta = points(2, 5, 1)[..., 0], points(2, 7, 1)[..., 0]
    ours = solve_points(x, y, sizes=sizes.tolist(), metric=metric)
    args = (x, y, eps_of(0.5), sizes, metric, ours.u, ours.v)
    plan = reference.sinkhorn_points_plan(*args, None)
    wide = x.expand(2, -1, -1).clone().requires_grad_(), y.clone().requires_grad_()
    cost = direct(*wide, metric)
    for use in (False, True):
        weight = w0[:, None, None] + w1[:, None, None] * cost.detach()
        if use:
            weight = weight + alpha[:, :, None] + beta[:, None]
        expected = torch.autograd.grad((plan * weight * cost).sum(), wide, retain_graph=True)
        grads = reference.sinkhorn_points_backward(
            *args, w0, w1, alpha if use else None, beta if use else None
        )
        for one, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_at_special_points(metric):
    """Coincident points have the Euclidean gradient 0, zero vectors the cosine gradient 0."""
    x = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]]).double()
    ours = solve_points(x, x, metric=metric)
    one = torch.ones(1).double()
    args = (x, x, eps_of(0.5), None, metric, ours.u, ours.v, one, 0 * one, None, None)
    dx, dy = reference.sinkhorn_points_backward(*args)
    assert dx.isfinite().all() and dy.isfinite().all()
    torch.testing.assert_close(dx, dy)
    if metric == 2:
        assert (dx[0, 0] == 0).all()


def test_a_bad_problem_has_gradient_zero_and_good_neighbours():
    x, y = points(2, 4), points(2, 3, seed=1)
    good = solve_points(x, y)
    x[1, 2, 0] = NAN
    ours = solve_points(x, y)
    assert ours.status.tolist() == [CONVERGED, NON_FINITE]
    assert torch.equal(ours.f[0], good.f[0]) and ours.value[1].isnan()
    w = torch.tensor([1.0, 0.0]).double()
    args = (x, y, eps_of(0.5), None, 0, ours.u, ours.v, w, 0 * w, None, None)
    dx, dy = reference.sinkhorn_points_backward(*args)
    assert (dx[1] == 0).all() and (dy[1] == 0).all() and dx[0].isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rho", [(INF, INF), (1.5, 1.5)])
def test_the_symmetric_iteration(metric, rho):
    x, a = points(2, 8), masses_of(2, 8)
    a[0, 3] = 0
    a = a / a.sum(1, keepdim=True)
    plain = solve_points(x, x, a, a, metric=metric, rho=rho, eps=1.0)
    ours = solve_points(x, x, a, a, metric=metric, rho=rho, eps=1.0, symmetric=True)
    torch.testing.assert_close(ours.value, plain.value)
    assert torch.equal(ours.f, ours.g) and torch.equal(ours.u, ours.v)
    # A plain solution is symmetric up to the constant that moves between the sides.
    torch.testing.assert_close(2 * ours.f, plain.f + plain.g)
    torch.testing.assert_close(ours.r, ours.c)
    assert ours.status.tolist() == [CONVERGED] * 2
    # A plain iteration may need thousands; the average halves what is left at least, here.
    assert (ours.n_iter < 60).all()


def test_over_relaxation_reaches_the_same_plan_in_fewer_iterations():
    cost, a, b = cost_of(32, 16, 16), masses_of(32, 16), masses_of(32, 16, seed=1)
    a[:, 3] = 0
    a = a / a.sum(1, keepdim=True)
    for eps in (0.1, 0.05):
        plain = solve(cost, a, b, eps, max_iter=2000, tol=1e-6)
        ours = solve(cost, a, b, eps, max_iter=2000, tol=1e-6, sor=True)
        assert (ours.error <= 1.0001e-6).all() and (ours.status == CONVERGED).all()
        # The last iteration is plain: its columns are exact.
        torch.testing.assert_close(ours.c, b)
        torch.testing.assert_close(ours.value, plain.value, rtol=1e-6, atol=0)
        assert ours.n_iter.double().mean() < 0.6 * plain.n_iter.double().mean()


def test_over_relaxation_ends_plain():
    cost, a, b = cost_of(4, 16, 16), masses_of(4, 16), masses_of(4, 16, seed=1)
    for max_iter in (1, 2, 23):
        ours = solve(cost, a, b, 0.05, max_iter=max_iter, tol=0.0, sor=True)
        assert ours.n_iter.tolist() == [max_iter] * 4
        torch.testing.assert_close(ours.c, b)
