"""Implicit gradients of <P, C> for points against those of the cost matrix."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import implicit_points, reference
from fedkernels.transport.implicit import lift, linear_gradients
from fedkernels.transport.implicit_points import linear_adjoint
from fedkernels.transport.reference.points import cost_backward, pairwise_cost
from tests.ops.transport.problems import Solved, eps_of, masses_of

pytestmark = pytest.mark.once

INF = math.inf
RHOS = [(INF, INF), (0.7, 0.7), (0.5, 2.0), (1.0, INF)]


def both(metric, rho, *, dtype=torch.float64, tiny=None, bad=False, ragged=False, shared=False):
    """(streamed, dense): the gradients of sum_b w_b <P_b, C_b> to x, y, a, b, eps."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1 if shared else 3, 9, 4, generator=generator).to(dtype)
    y = torch.randn(3, 7, 4, generator=generator).to(dtype)
    a, b = masses_of(3, 9, dtype=dtype), masses_of(3, 7, seed=1, dtype=dtype)
    if tiny is not None:
        a[:, 2] = b[1, 3] = tiny
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    if bad:
        y[1, 0, 0] = math.nan
    eps, weight = eps_of(0.5, 1.0, 2.0), torch.tensor([0.7, -1.3, 1.0], dtype=dtype)
    sizes = torch.tensor([[9, 7], [9, 7], [4, 5]]) if ragged else None
    if ragged:
        a[2, 4:], b[2, 5:] = 0, 0
        a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    points = (x, y, eps, sizes, metric)
    tol = 1e-13 if dtype == torch.float64 else 1e-6
    solved = Solved(
        *reference.sinkhorn_points_forward(
            x, y, a, b, eps, sizes, None, 3, metric, *rho, 20_000, tol, False, False
        )
    )
    ok = solved.status <= 1
    u = lift(solved.u, solved.f, eps, sizes, 0)
    v = lift(solved.v, solved.g, eps, sizes, 1)
    ours = linear_adjoint(reference, *points, u, v, solved.f, solved.g, *rho, ok)
    w = torch.where(ok, weight, 0.0)
    dx, dy = reference.sinkhorn_points_backward(
        *points, u.kept, v.kept, w, w * ours.w1, w[:, None] * ours.alpha, w[:, None] * ours.beta
    )
    streamed = (dx, dy, w[:, None] * ours.a, w[:, None] * ours.b, w * ours.eps, ours.residual)

    cost = pairwise_cost(x, y, metric, sizes)
    plan = reference.sinkhorn_points_plan(*points, u.lifted, v.lifted, None)
    dense = linear_gradients(plan, weight, cost, u, v, solved.f, solved.g, eps, *rho, ok)
    dx, dy = cost_backward(x, y, metric, dense.cost, sizes)
    dx, dy = (torch.where(ok[:, None, None], side, 0.0) for side in (dx, dy))
    return streamed, (dx, dy, dense.a, dense.b, dense.eps, dense.residual)


def assert_close(streamed, dense, balanced, **tolerance):
    for name, one, other in zip(("x", "y", "a", "b", "eps"), streamed, dense, strict=False):
        if name in "ab" and balanced:
            # Up to a constant over the valid entries, which hold the only nonzero gradients.
            inside = other != 0
            count = inside.sum(1, keepdim=True).clamp(min=1)
            one, other = (
                torch.where(inside, grad - grad.sum(1, keepdim=True) / count, 0.0)
                for grad in (one, other)
            )
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_the_same_as_with_the_matrix(metric, rho, shared, monkeypatch):
    monkeypatch.setattr(implicit_points, "_ENTRIES", 3 * 7 * 2)  # slices of two rows
    streamed, dense = both(metric, rho, shared=shared)
    assert_close(streamed, dense, rho == (INF, INF), rtol=1e-7, atol=1e-9)
    assert (streamed[5] < 1e-10).all()


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("tiny", [0.0, 1e-200, 1e-30, 1e-12])
def test_masses_near_zero(rho, tiny):
    streamed, dense = both(0, rho, tiny=tiny)
    assert_close(streamed, dense, rho == (INF, INF), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 2.0)])
def test_ragged_and_bad_problems(rho, monkeypatch):
    monkeypatch.setattr(implicit_points, "_ENTRIES", 3 * 7 * 2)
    streamed, dense = both(0, rho, bad=True, ragged=True)
    for grad in streamed:
        assert grad.isfinite().all() and (grad[1] == 0).all()
    assert (streamed[0][2, 4:] == 0).all() and (streamed[3][2, 5:] == 0).all()
    assert_close(streamed, dense, rho == (INF, INF), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 2.0)])
def test_float32_reports_its_residual(rho):
    streamed, _ = both(0, rho, dtype=torch.float32)
    assert (streamed[5] < 1e-5).all()
    wide, _ = both(0, rho)
    for one, other in zip(streamed[:2], wide[:2], strict=True):
        assert float((one - other).abs().max()) < 1e-3 * float(other.abs().max())
