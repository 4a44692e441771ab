"""Envelope gradients of the value against differences of the primal optimum, and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels.transport import sinkhorn
from tests.ops.transport.problems import cost_of, eps_of, masses_of, plan_of, solve

pytestmark = pytest.mark.once

INF = math.inf
RHOS = [(INF, INF), (0.7, 0.7), (0.5, 2.0), (1.0, INF), (INF, 0.3)]


def problem(rho):
    total = 1.0 if rho == (INF, INF) else 1.3
    return (
        cost_of(2, 5, 4),
        masses_of(2, 5, total=total),
        masses_of(2, 4, seed=1),
        eps_of(0.2, 0.4),
    )


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p / q) - p + q).flatten(1).sum(1)


def primal_optimum(cost, a, b, eps, rho) -> Tensor:
    """<P, C> + eps KL(P | ab) + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b) at the solution."""
    found = solve(cost, a, b, eps, rho=rho, max_iter=1500, tol=1e-14)
    plan = plan_of(cost, found, eps)
    value = (plan * cost).sum((1, 2)) + eps * kl(plan, a[:, :, None] * b[:, None])
    for side, marginal, mass in ((rho[0], plan.sum(2), a), (rho[1], plan.sum(1), b)):
        value = value if math.isinf(side) else value + side * kl(marginal, mass)
    return value


def gradients(cost, a, b, eps, rho, **options) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (cost, a, b, eps)]
    pair = tuple(None if math.isinf(side) else side for side in rho)
    result = sinkhorn(
        *leaves[:3], eps=leaves[3], rho=None if pair == (None, None) else pair,
        max_iter=20_000, tol=1e-13, solver="sinkhorn", backend="reference", **options,
    )  # fmt: skip
    return list(torch.autograd.grad(result.value.sum(), leaves))


def directions(cost, a, b, eps, rho) -> list[Tensor]:
    """One random direction of each input; balanced totals are kept."""
    found = [
        torch.randn_like(t) * scale for t, scale in ((cost, 1), (a, 0.1), (b, 0.1), (eps, 0.1))
    ]
    if rho == (INF, INF):
        found[1:3] = (side - side.mean(1, keepdim=True) for side in found[1:3])
    return found


@pytest.mark.parametrize("rho", RHOS)
def test_finite_differences_of_the_primal_optimum(rho):
    inputs = problem(rho)
    grads = gradients(*inputs, rho)
    h = 1e-5
    for k, direction in enumerate(directions(*inputs, rho)):
        ends = []
        for sign in (1, -1):
            moved = [t + sign * h * direction if i == k else t for i, t in enumerate(inputs)]
            ends.append(primal_optimum(*moved, rho))
        difference = (ends[0] - ends[1]) / (2 * h)
        slope = (grads[k] * direction).reshape(2, -1).sum(1)
        # Central differences: h^2 of the third derivative, and the optimum's 1e-15 over h.
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rho", RHOS)
def test_autograd_through_the_unrolled_iteration(rho):
    """The dual value of potentials that autograd follows through 400 iterations."""
    inputs = problem(rho)
    leaves = [t.clone().requires_grad_() for t in inputs]
    cost, a, b, eps = *leaves[:3], leaves[3][:, None]
    k_a, k_b = (1.0 if math.isinf(side) else side / (side + eps) for side in rho)
    g = torch.zeros_like(b)
    for _ in range(400):
        f = -k_a * eps * ((g[:, None] - cost) / eps[..., None] + b.log()[:, None]).logsumexp(2)
        g = -k_b * eps * ((f[:, :, None] - cost) / eps[..., None] + a.log()[..., None]).logsumexp(1)
    plan = a[..., None] * b[:, None] * ((f[..., None] + g[:, None] - cost) / eps[..., None]).exp()
    value = -leaves[3] * (plan.sum((1, 2)) - a.sum(1) * b.sum(1))
    for side, mass, potential in ((rho[0], a, f), (rho[1], b, g)):
        term = potential if math.isinf(side) else -side * torch.expm1(-potential / side)
        value = value + (mass * term).sum(1)
    expected = torch.autograd.grad(value.sum(), leaves)
    for k, (one, other) in enumerate(zip(gradients(*inputs, rho), expected, strict=True)):
        if rho == (INF, INF) and k in (1, 2):
            one, other = (grad - grad.mean(1, keepdim=True) for grad in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rho", RHOS)
def test_a_zero_mass_has_the_limit_of_small_masses(rho):
    cost, a, b, eps = problem(rho)
    a[:, 1] = b[:, 0] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    ours = gradients(cost, a, b, eps, rho)
    near = gradients(cost, a.clamp(min=1e-12), b.clamp(min=1e-12), eps, rho)
    for one, other in zip(ours, near, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_gradients_follow_scale_and_sign():
    inputs = problem((INF, INF))
    leaves = [t.clone().requires_grad_() for t in inputs]
    value = sinkhorn(*leaves[:3], eps=leaves[3], backend="reference").value.sum()
    once = torch.autograd.grad(value, leaves, retain_graph=True)
    scaled = torch.autograd.grad(-3 * value, leaves)
    for one, other in zip(once, scaled, strict=True):
        torch.testing.assert_close(-3 * one, other)


def test_the_entropy_convention():
    """With eps sum P log P the value is eps (<a, log a> + <b, log b> + m - m^2) more; m = 1."""
    cost, a, b, eps = problem((INF, INF))
    optimum = primal_optimum(cost, a, b, eps, (INF, INF))
    logs = (a * a.log()).sum(1) + (b * b.log()).sum(1)
    entropy = sinkhorn(
        cost, a, b, eps=eps, reg_type="entropy", tol=1e-13, max_iter=20_000, solver="sinkhorn",
        backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(entropy.value, optimum + eps * logs)
    grads = gradients(cost, a, b, eps, (INF, INF), reg_type="entropy")
    plain = gradients(cost, a, b, eps, (INF, INF))
    torch.testing.assert_close(grads[0], plain[0])
    torch.testing.assert_close(grads[3], plain[3] + logs)
    term = eps[:, None] * a.log()
    torch.testing.assert_close(grads[1], plain[1] + term - term.mean(1, keepdim=True))
