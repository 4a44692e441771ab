"""Implicit gradients against autograd through an unrolled, converged iteration in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels.transport import reference
from fedkernels.transport.implicit import lift, linear_gradients, plan_gradients
from tests.ops.transport.problems import cost_of, eps_of, masses_of, solve

pytestmark = pytest.mark.once

INF = math.inf
RHOS = [(INF, INF), (0.7, 0.7), (0.5, 2.0), (1.0, INF), (INF, 0.3)]


def unrolled(cost, a, b, eps, rho, steps=300) -> Tensor:
    """The plan by plain differentiable iterations; positive masses."""
    eps = eps[:, None]
    k_a, k_b = (1.0 if math.isinf(side) else side / (side + eps) for side in rho)
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(steps):
        f = -k_a * eps * torch.logsumexp((g[:, None] - cost) / eps[..., None] + b.log()[:, None], 2)
        g = (
            -k_b
            * eps
            * torch.logsumexp((f[:, :, None] - cost) / eps[..., None] + a.log()[:, :, None], 1)
        )
    inner = (f[:, :, None] + g[:, None] - cost) / eps[..., None]
    return a[:, :, None] * b[:, None] * inner.exp()


def projected(grad: Tensor, rho) -> Tensor:
    """Without the constant that balanced mass gradients are defined up to."""
    return grad - grad.mean(1, keepdim=True) if rho == (INF, INF) else grad


def implicit(cost, a, b, eps, rho, G=None, weight=None, sizes=None, ok=None):
    ours = solve(cost, a, b, eps, rho=rho, sizes=sizes, max_iter=1500, tol=1e-14)
    sizes = None if sizes is None else torch.tensor(sizes)
    ok = ours.status <= 1 if ok is None else ok
    u, v = lift(ours.u, ours.f, eps, sizes, 0), lift(ours.v, ours.g, eps, sizes, 1)
    plan = reference.sinkhorn_plan(cost, eps, sizes, u.lifted, v.lifted, None)
    rest = (cost, u, v, ours.f, ours.g, eps, *rho, ok)
    if weight is not None:
        return linear_gradients(plan, weight, *rest)
    return plan_gradients(plan, G, *rest)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(("n", "m"), [(5, 4), (3, 6), (1, 3), (4, 1)])
def test_a_loss_on_the_plan(rho, n, m):
    total = 1.0 if rho == (INF, INF) else 1.3
    cost, a, b = cost_of(2, n, m), masses_of(2, n, total=total), masses_of(2, m, seed=1)
    eps, G = eps_of(0.15, 0.4), torch.randn(2, n, m).double()
    leaves = [t.clone().requires_grad_() for t in (cost, a, b, eps)]
    if rho == (INF, INF):  # along the masses whose totals agree
        wide = [
            leaves[1] / leaves[1].sum(1, keepdim=True),
            leaves[2] / leaves[2].sum(1, keepdim=True),
        ]
    else:
        wide = leaves[1:3]
    expected = torch.autograd.grad((unrolled(leaves[0], *wide, leaves[3], rho) * G).sum(), leaves)
    ours = implicit(cost, a, b, eps, rho, G)
    torch.testing.assert_close(ours.cost, expected[0], rtol=1e-7, atol=1e-9)
    grads = [ours.a, ours.b]
    if rho == (INF, INF):  # the gradient through a / sum(a) at sum(a) = 1
        grads = [
            grad - (grad * mass).sum(1, keepdim=True)
            for grad, mass in zip(grads, (a, b), strict=True)
        ]
    torch.testing.assert_close(grads[0], expected[1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grads[1], expected[2], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.eps, expected[3], rtol=1e-7, atol=1e-9)
    assert (ours.residual < 1e-10).all()


@pytest.mark.parametrize("rho", RHOS)
def test_the_linear_cost(rho):
    cost, a, b = cost_of(2, 5, 4), masses_of(2, 5), masses_of(2, 4, seed=1)
    eps, weight = eps_of(0.15, 0.4), torch.tensor([0.7, -1.3]).double()
    leaves = [t.clone().requires_grad_() for t in (cost, a, b, eps)]
    linear = (unrolled(*leaves, rho) * leaves[0]).sum((1, 2))
    expected = torch.autograd.grad((linear * weight).sum(), leaves)
    ours = implicit(cost, a, b, eps, rho, weight=weight)
    torch.testing.assert_close(ours.cost, expected[0], rtol=1e-7, atol=1e-9)
    for one, other in ((ours.a, expected[1]), (ours.b, expected[2])):
        torch.testing.assert_close(projected(one, rho), projected(other, rho), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.eps, expected[3], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rho", RHOS)
def test_masses_of_zero_have_the_limit_of_small_masses(rho):
    cost, a, b = cost_of(2, 5, 4), masses_of(2, 5), masses_of(2, 4, seed=1)
    a[:, 2], b[0, 1] = 0.0, 0.0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    eps, G = eps_of(0.15, 0.4), torch.randn(2, 5, 4).double()
    small = [mass.clamp(min=1e-11).requires_grad_() for mass in (a, b)]
    plan = unrolled(cost, *small, eps, rho)
    expected = torch.autograd.grad((plan * G).sum(), small)
    for tiny in (0.0, 1e-200, 1e-30, 1e-14):
        ours = implicit(cost, a.clamp(min=tiny), b.clamp(min=tiny), eps, rho, G)
        for one, other in ((ours.a, expected[0]), (ours.b, expected[1])):
            torch.testing.assert_close(
                projected(one, rho), projected(other, rho), rtol=1e-6, atol=1e-8
            )
        assert ours.cost.isfinite().all() and (ours.residual < 1e-9).all()


@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 2.0)])
def test_padding_and_problems_without_a_solution(rho):
    cost, a, b = cost_of(3, 5, 4), masses_of(3, 5), masses_of(3, 4, seed=1)
    a[1] = a[1] * (torch.arange(5) < 3)
    b[1] = b[1] * (torch.arange(4) < 2)
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    G = torch.randn(3, 5, 4).double()
    alone = implicit(
        cost[1:2, :3, :2].contiguous(), a[1:2, :3], b[1:2, :2], eps_of(0.1), rho, G[1:2, :3, :2]
    )
    cost[1, 3:], cost[1, :, 2:], cost[2, 0, 0] = math.nan, math.inf, math.nan
    ours = implicit(cost, a, b, eps_of(0.1, 0.1, 0.1), rho, G, sizes=[[5, 4], [3, 2], [5, 4]])
    torch.testing.assert_close(ours.cost[1, :3, :2], alone.cost[0])
    torch.testing.assert_close(ours.a[1, :3], alone.a[0])
    torch.testing.assert_close(ours.b[1, :2], alone.b[0])
    torch.testing.assert_close(ours.eps[1], alone.eps[0])
    assert (ours.cost[1, 3:] == 0).all() and (ours.a[1, 3:] == 0).all()
    for grad in ours[:4]:
        assert (grad[2] == 0).all() and grad.isfinite().all()


def test_a_plan_that_falls_into_blocks():
    """Two blocks that do not see each other: a second null vector, and still a gradient."""
    cost = cost_of(1, 6, 6)
    cost[:, :3, 3:] += 1e3
    cost[:, 3:, :3] += 1e3
    a = masses_of(1, 6)
    a[:, :3], a[:, 3:] = (side / side.sum() / 2 for side in (a[:, :3], a[:, 3:]))
    G = torch.randn(1, 6, 6).double()
    ours = implicit(cost, a, a, eps_of(0.1), (INF, INF), G)
    for part in (slice(3), slice(3, 6)):
        alone = implicit(
            cost[:, part, part].contiguous(), 2 * a[:, part], 2 * a[:, part], eps_of(0.1),
            (INF, INF), G[:, part, part] / 2,
        )  # fmt: skip
        torch.testing.assert_close(ours.cost[:, part, part], alone.cost, rtol=1e-6, atol=1e-8)
    assert (ours.residual < 1e-10).all()


@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 2.0)])
def test_float32_follows_float64(rho):
    """The system is solved in double: what is lost is the plan's own rounding."""
    cost, a, b = cost_of(4, 12, 9), masses_of(4, 12), masses_of(4, 9, seed=1)
    G = torch.randn(4, 12, 9).double()
    wide = implicit(cost, a, b, eps_of(0.05), rho, G)
    narrow = solve(cost.float(), a.float(), b.float(), 0.05, rho=rho, max_iter=5000, tol=1e-6)
    eps = eps_of(0.05)
    u, v = lift(narrow.u, narrow.f, eps, None, 0), lift(narrow.v, narrow.g, eps, None, 1)
    plan = reference.sinkhorn_plan(cost.float(), eps, None, u.lifted, v.lifted, None)
    ours = plan_gradients(
        plan, G.float(), cost.float(), u, v, narrow.f, narrow.g, eps, *rho, narrow.status <= 1
    )
    assert ours.cost.dtype == torch.float32
    for one, other in ((ours.cost, wide.cost), (projected(ours.a, rho), projected(wide.a, rho))):
        assert float((one - other).abs().max()) < 2e-4 * float(other.abs().max())
