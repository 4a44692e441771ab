"""The reference against statements that share nothing with it: POT, closed forms, invariants."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import reference
from tests.ops.transport.problems import (
    CONVERGED,
    cost_of,
    eps_of,
    masses_of,
    plan_of,
    solve,
)

pytestmark = pytest.mark.once

INF = math.inf
UNBALANCED = [(INF, INF), (0.7, 0.7), (0.5, 2.0), (1.0, INF), (INF, 0.3)]


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.02])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 1), (5, 7), (16, 16)])
def test_the_plan_of_pot(n, m, eps):
    ot = pytest.importorskip("ot")
    cost, a, b = cost_of(1, n, m), masses_of(1, n), masses_of(1, m, seed=1)
    ours = solve(cost, a, b, eps, max_iter=100_000, tol=1e-13)
    theirs = ot.sinkhorn(
        a[0].numpy(), b[0].numpy(), cost[0].numpy(), eps,
        method="sinkhorn_log", numItermax=100_000, stopThr=1e-14,
    )  # fmt: skip
    plan = plan_of(cost, ours, eps)[0]
    # Both stop at a marginal error below 1e-13; the plan is less certain by the contraction's rate.
    torch.testing.assert_close(plan, torch.from_numpy(theirs), rtol=0, atol=1e-9)
    kl = (plan * (plan / (a[0, :, None] * b[0])).log()).sum()
    torch.testing.assert_close(ours.value[0], (plan * cost[0]).sum() + eps * kl, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.linear[0], (plan * cost[0]).sum(), rtol=0, atol=1e-12)
    assert ours.status.tolist() == [CONVERGED]


@pytest.mark.parametrize("rho", [(0.7, 0.7), (0.5, 2.0)])
def test_the_unbalanced_plan_of_pot(rho):
    ot = pytest.importorskip("ot")
    cost, a, b = cost_of(1, 5, 7), masses_of(1, 5, total=1.5), masses_of(1, 7, seed=1)
    ours = solve(cost, a, b, 0.1, rho=rho, max_iter=20_000)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a[0].numpy(), b[0].numpy(), cost[0].numpy(), 0.1, rho,
        reg_type="kl", numItermax=20_000, stopThr=1e-15,
    )  # fmt: skip
    torch.testing.assert_close(plan_of(cost, ours)[0], torch.from_numpy(theirs), rtol=0, atol=1e-8)


def test_the_iterates_of_pot():
    """From g = -eps log b five iterations are POT's five: its prior has no a, b."""
    batch = pytest.importorskip("ot.batch")
    cost, a, b = cost_of(3, 6, 4), masses_of(3, 6), masses_of(3, 4, seed=1)
    ours = solve(cost, a, b, 0.05, g0=-0.05 * b.log(), max_iter=5, tol=0.0)
    theirs = batch.solve_batch(cost, 0.05, a, b, max_iter=5, tol=0.0, method="log_sinkhorn")
    torch.testing.assert_close(plan_of(cost, ours, 0.05), theirs.plan, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rho", UNBALANCED)
def test_the_value_is_the_primal_value(rho):
    """At the optimum the dual value is <P, C> + eps KL(P | ab) + sum of the penalties."""

    def kl(p, q):
        return (torch.xlogy(p, p / q) - p + q).sum((1, 2) if p.dim() == 3 else 1)

    total = 1.0 if rho == (INF, INF) else 1.4
    cost, a, b = cost_of(2, 5, 7), masses_of(2, 5, total=total), masses_of(2, 7, seed=1)
    ours = solve(cost, a, b, 0.1, rho=rho, max_iter=20_000)
    plan = plan_of(cost, ours)
    primal = (plan * cost).sum((1, 2)) + 0.1 * kl(plan, a[:, :, None] * b[:, None])
    for side, marginal, mass in ((rho[0], plan.sum(2), a), (rho[1], plan.sum(1), b)):
        primal = primal if math.isinf(side) else primal + side * kl(marginal, mass)
    torch.testing.assert_close(ours.value, primal, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.r, plan.sum(2))
    torch.testing.assert_close(ours.c, plan.sum(1))


def test_one_by_one():
    cost = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    ours = solve(cost)
    assert plan_of(cost, ours).item() == pytest.approx(1.0, abs=1e-15)
    assert ours.value.item() == pytest.approx(0.3, abs=1e-15)
    assert ours.n_iter.item() == 1


def test_two_by_two_has_the_cross_ratio_of_the_kernel():
    """Uniform halves: P = [[p, q], [q, p]], p / q = exp(-(C11 + C22 - C12 - C21) / 2 eps)."""
    cost = torch.tensor([[[0.1, 0.5], [0.9, 0.2]]], dtype=torch.float64)
    plan = plan_of(cost, solve(cost, eps=0.3), 0.3)[0]
    ratio = math.exp(-(0.1 + 0.2 - 0.5 - 0.9) / (2 * 0.3))
    assert plan[0, 0].item() == pytest.approx(ratio / (2 * (1 + ratio)), rel=1e-12)
    assert plan[0, 1].item() == pytest.approx(1 / (2 * (1 + ratio)), rel=1e-12)


def test_the_limits_of_eps():
    """The product plan at eps -> inf; at eps -> 0 within eps (H(a) + H(b)) above the exact cost."""
    ot = pytest.importorskip("ot")
    cost, a, b = cost_of(1, 6, 8), masses_of(1, 6), masses_of(1, 8, seed=1)
    far = plan_of(cost, solve(cost, a, b, 1e6), 1e6)
    torch.testing.assert_close(far, a[:, :, None] * b[:, None], rtol=1e-5, atol=0)
    exact = float(ot.emd2(a[0].numpy(), b[0].numpy(), cost[0].numpy()))
    entropy = -float((a * a.log()).sum() + (b * b.log()).sum())
    last = INF
    for eps in (0.5, 0.1, 0.02, 0.004):
        ours = solve(cost, a, b, eps, max_iter=20_000, tol=1e-9)
        assert exact - 1e-8 <= ours.linear.item() <= min(exact + eps * entropy, last)
        assert float((a * ours.f).sum() + (b * ours.g).sum()) <= exact + eps * entropy
        last = ours.linear.item()


@pytest.mark.parametrize("rho", UNBALANCED)
def test_transposing_swaps_the_potentials(rho):
    cost, a, b = cost_of(2, 5, 7), masses_of(2, 5), masses_of(2, 7, seed=1)
    ours = solve(cost, a, b, rho=rho, max_iter=50_000)
    swapped = solve(cost.mT.contiguous(), b, a, rho=rho[::-1], max_iter=50_000)
    torch.testing.assert_close(plan_of(cost, ours), plan_of(cost.mT, swapped).mT)
    torch.testing.assert_close(ours.value, swapped.value)
    # Balanced potentials are defined up to a constant that moves from one side to the other.
    shift = (ours.f - swapped.g)[:, :1] if rho == (INF, INF) else 0.0
    torch.testing.assert_close(ours.f - shift, swapped.g)
    torch.testing.assert_close(ours.g + shift, swapped.f)


def test_a_shift_of_the_cost_moves_into_the_potentials():
    cost, a, b = cost_of(2, 5, 7), masses_of(2, 5), masses_of(2, 7, seed=1)
    row, column = torch.randn(2, 5, 1).double(), torch.randn(2, 1, 7).double()
    plain, moved = solve(cost, a, b), solve(cost + row + column, a, b)
    torch.testing.assert_close(plan_of(cost, plain), plan_of(cost + row + column, moved))
    shift = (row[..., 0] * a).sum(1) + (column[:, 0] * b).sum(1)
    torch.testing.assert_close(plain.value + shift, moved.value)


@pytest.mark.parametrize("rho", UNBALANCED)
def test_scaling_cost_and_eps_scales_the_value(rho):
    cost, a, b = cost_of(2, 5, 7), masses_of(2, 5), masses_of(2, 7, seed=1)
    plain = solve(cost, a, b, 0.1, rho=rho)
    scaled = solve(3 * cost, a, b, 0.3, rho=(3 * rho[0], 3 * rho[1]))
    torch.testing.assert_close(3 * plain.value, scaled.value)
    torch.testing.assert_close(3 * plain.f, scaled.f)
    torch.testing.assert_close(plan_of(cost, plain, 0.1), plan_of(3 * cost, scaled, 0.3))


def test_a_large_rho_is_nearly_balanced():
    cost, a, b = cost_of(2, 5, 7), masses_of(2, 5), masses_of(2, 7, seed=1)
    near = solve(cost, a, b, rho=(1e7, 1e7), max_iter=600)
    torch.testing.assert_close(near.value, solve(cost, a, b).value, rtol=1e-6, atol=0)


def test_apply_is_the_plan_times_vectors():
    cost, sizes = cost_of(2, 5, 7), [[5, 7], [3, 4]]
    ours = solve(cost, sizes=sizes)
    plan, V, W = plan_of(cost, ours, sizes=sizes), torch.randn(2, 7, 3), torch.randn(2, 5, 2)
    V, W = V.double(), W.double()
    V[1, 4:] = math.nan  # the padding is not read
    out = reference.sinkhorn_apply(cost, eps_of(0.1), torch.tensor(sizes), ours.u, ours.v, V, False)
    torch.testing.assert_close(out, plan @ V.nan_to_num())
    out = reference.sinkhorn_apply(cost, eps_of(0.1), torch.tensor(sizes), ours.u, ours.v, W, True)
    torch.testing.assert_close(out, plan.mT @ W)


def test_float32_is_close_to_float64():
    """Plan within 8 * 2^-23 * (1 + range(C) / eps) in L1, the rounding of K + u + v."""
    for eps in (1.0, 0.1, 0.01):
        cost, a, b = cost_of(4, 16, 16), masses_of(4, 16), masses_of(4, 16, seed=1)
        wide = solve(cost, a, b, eps, max_iter=50, tol=0.0)
        narrow = solve(cost.float(), a.float(), b.float(), eps, max_iter=50, tol=0.0)
        plan = plan_of(cost.float(), narrow, eps)
        bound = 8 * 2**-23 * (1 + float(cost.max()) / eps)
        assert float((plan - plan_of(cost, wide, eps)).abs().sum((1, 2)).max()) <= bound
