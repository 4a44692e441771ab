"""Contents that end in a status: what a problem reports, and that its neighbours do not notice."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import reference
from tests.ops.transport.problems import (
    CONVERGED,
    EMPTY,
    INFEASIBLE,
    MAX_ITER,
    NON_FINITE,
    cost_of,
    eps_of,
    masses_of,
    plan_of,
    solve,
)

pytestmark = pytest.mark.once

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float64]


def inputs(dtype=torch.float64):
    return (
        cost_of(3, 5, 7, dtype=dtype),
        masses_of(3, 5, dtype=dtype),
        masses_of(3, 7, seed=1, dtype=dtype),
    )


def assert_bits(actual, expected):
    """Equal bit for bit, NaN to NaN."""
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), name


def rows(solved, keep):
    return type(solved)(*(t[keep] for t in solved))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["cost nan", "cost inf", "a", "b", "eps", "eps 0", "g0"])
def test_one_bad_problem_leaves_the_others_alone(where, dtype):
    cost, a, b = inputs(dtype)
    eps, g0 = eps_of(0.1, 0.1, 0.1), torch.zeros(3, 7, dtype=dtype)
    good = solve(cost, a, b, eps, g0=g0, max_iter=50, tol=1e-4)
    target, bad = {
        "cost nan": (cost, NAN), "cost inf": (cost, INF), "a": (a, NAN), "b": (b, INF),
        "eps": (eps, NAN), "eps 0": (eps, 0.0), "g0": (g0, NAN),
    }[where]  # fmt: skip
    target[1, ...].view(-1)[-1] = bad
    ours = solve(cost, a, b, eps, g0=g0, max_iter=50, tol=1e-4)
    assert ours.status.tolist() == [good.status[0], NON_FINITE, good.status[2]]
    assert_bits(rows(ours, [0, 2]), rows(good, [0, 2]))
    for name in ("value", "linear", "error", "f", "g", "u", "v", "r", "c"):
        assert getattr(ours, name)[1].isnan().all(), name
    assert ours.n_iter[1] == 0
    scale = torch.tensor([1.0, 0.0, 2.0], dtype=dtype)
    plan = plan_of(cost, ours, eps, scale=scale)
    assert torch.equal(plan[1], torch.zeros_like(plan[1]))
    assert torch.equal(plan[2], 2 * plan_of(cost, ours, eps)[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_not_read_and_holds_zero(dtype):
    cost, a, b = inputs(dtype)
    sizes = [[5, 7], [3, 4], [1, 7]]
    clean = solve(cost, a, b.clone(), sizes=sizes, rho=(1.0, 1.0), max_iter=30, tol=0.0)
    for k, (n, m) in enumerate(sizes):
        cost[k, n:], cost[k, :, m:], a[k, n:], b[k, m:] = NAN, INF, NAN, -1.0
        alone = solve(
            cost[k : k + 1, :n, :m], a[k : k + 1, :n], b[k : k + 1, :m],
            rho=(1.0, 1.0), max_iter=30, tol=0.0,
        )  # fmt: skip
        torch.testing.assert_close(clean.value[k : k + 1], alone.value)
        torch.testing.assert_close(clean.f[k : k + 1, :n], alone.f)
    ours = solve(cost, a, b, sizes=sizes, rho=(1.0, 1.0), max_iter=30, tol=0.0)
    assert_bits(ours, clean)
    plan = plan_of(cost, ours, sizes=sizes)
    for k, (n, m) in enumerate(sizes):
        for side, size in (("f", n), ("u", n), ("r", n), ("g", m), ("v", m), ("c", m)):
            assert (getattr(ours, side)[k, size:] == 0).all(), side
        assert (plan[k, n:] == 0).all() and (plan[k, :, m:] == 0).all()
        torch.testing.assert_close(plan[k].sum(1), ours.r[k])


@pytest.mark.parametrize("rho", [(INF, INF), (0.7, 0.7), (1.0, INF)])
def test_zero_masses_are_the_problem_without_them(rho):
    cost, a, b = inputs()
    a[:, 2] = b[:, 0] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    ours = solve(cost, a, b, rho=rho)
    i, j = [0, 1, 3, 4], [1, 2, 3, 4, 5, 6]
    fewer = solve(cost[:, i][:, :, j].contiguous(), a[:, i], b[:, j], rho=rho)
    torch.testing.assert_close(ours.value, fewer.value)
    torch.testing.assert_close(ours.f[:, i], fewer.f)
    torch.testing.assert_close(ours.g[:, j], fewer.g)
    assert (ours.u[:, 2] == -INF).all() and (ours.v[:, 0] == -INF).all()
    assert (plan_of(cost, ours)[:, 2] == 0).all() and (ours.r[:, 2] == 0).all()
    damping = 1.0 if math.isinf(rho[0]) else rho[0] / (rho[0] + 0.1)
    soft = -0.1 * torch.logsumexp((ours.g - cost[:, 2]) / 0.1 + b.log(), 1)
    torch.testing.assert_close(ours.f[:, 2], damping * soft)
    assert ours.g[:, 0].isfinite().all()


def test_masses_that_are_none():
    cost = cost_of(2, 5, 7)
    sizes = [[5, 7], [2, 3]]
    both = solve(cost, sizes=sizes)
    torch.testing.assert_close(both.r.sum(1), torch.ones(2).double())
    torch.testing.assert_close(both.c[1, :3], torch.full((3,), 1 / 3).double())
    b = masses_of(2, 7, total=3.0)
    one = solve(cost, None, b)
    torch.testing.assert_close(one.r, torch.full((2, 5), 3 / 5).double())
    half = solve(cost, None, b, rho=(1.0, 1.0))
    explicit = solve(cost, torch.full((2, 5), 3 / 5).double(), b, rho=(1.0, 1.0))
    torch.testing.assert_close(half.value, explicit.value)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_a_mismatch_of_balanced_masses(dtype, limit):
    cost, a, b = inputs(dtype)
    factor = torch.tensor([1.0, 1 + 0.5 * limit, 1 + 3 * limit], dtype=torch.float64)
    ours = solve(cost, a, (b.double() * factor[:, None]).to(dtype), max_iter=100, tol=1e-3)
    assert ours.status.tolist() == [CONVERGED, CONVERGED, INFEASIBLE]
    torch.testing.assert_close(ours.c[1], b[1], rtol=0.1 * limit, atol=0)
    assert ours.value[2].isnan() and ours.f[2].isnan().all()
    assert solve(cost, 2 * a, b, rho=(1.0, INF), tol=1e-4).status.tolist() == [CONVERGED] * 3


def test_negative_mass_is_infeasible():
    cost, a, b = inputs()
    a[1, 0] = -a[1, 0]
    assert solve(cost, a, b, max_iter=300).status.tolist() == [CONVERGED, INFEASIBLE, CONVERGED]
    assert solve(cost, a, b, rho=(1.0, 1.0)).status.tolist() == [CONVERGED, INFEASIBLE, CONVERGED]


def test_no_mass_on_either_side():
    cost = cost_of(2, 3, 4)
    a, b = torch.zeros(2, 3).double(), torch.zeros(2, 4).double()
    for rho in ((INF, INF), (1.0, 1.0)):
        ours = solve(cost, a, b, rho=rho, tol=0.0, max_iter=5)
        assert ours.status.tolist() == [CONVERGED] * 2
        for name in ("value", "linear", "f", "g", "r", "c", "error", "n_iter"):
            assert (getattr(ours, name) == 0).all(), name
        assert (plan_of(cost, ours) == 0).all()


def test_no_mass_on_one_side():
    """No plan: what stays is the penalty of the other side, or nothing is feasible."""
    cost, a, b = cost_of(1, 3, 4), torch.zeros(1, 3).double(), masses_of(1, 4, total=2.0)
    ours = solve(cost, a, b, rho=(0.5, 0.7))
    assert ours.value.item() == pytest.approx(0.7 * 2.0) and ours.status.item() == CONVERGED
    assert (plan_of(cost, ours) == 0).all()
    assert solve(cost, a, b, rho=(INF, 0.7)).value.item() == pytest.approx(0.7 * 2.0)
    assert solve(cost, a, b, rho=(0.7, INF)).status.item() == INFEASIBLE
    assert solve(cost, a, b).status.item() == INFEASIBLE


def test_empty_problems():
    cost = cost_of(4, 3, 4)
    ours = solve(cost, sizes=[[3, 4], [0, 4], [3, 0], [0, 0]])
    assert ours.status.tolist() == [CONVERGED, INFEASIBLE, INFEASIBLE, EMPTY]
    assert ours.value[3] == 0 and ours.f[3].abs().sum() == 0
    zero = solve(cost, None, torch.zeros(4, 4).double(), sizes=[[3, 4], [0, 4], [3, 0], [0, 0]])
    assert zero.status.tolist() == [CONVERGED, EMPTY, EMPTY, EMPTY]
    for n, m, status in ((0, 4, INFEASIBLE), (3, 0, INFEASIBLE), (0, 0, EMPTY)):
        block = solve(torch.zeros(2, n, m))
        assert block.status.tolist() == [status] * 2
        assert block.f.shape == (2, n) and block.g.shape == (2, m)
    assert solve(torch.zeros(0, 3, 4)).value.shape == (0,)


def test_the_number_of_iterations():
    """n_iter is where the test was first passed, problem by problem, and error says how well."""
    cost, a, b = inputs()
    eps = eps_of(1.0, 0.1, 0.01)
    ours = solve(cost, a, b, eps, tol=1e-5, max_iter=2000)
    assert ours.n_iter[0] < ours.n_iter[1] < ours.n_iter[2]
    assert (ours.error <= 1.01e-5).all()
    for k, n_iter in enumerate(ours.n_iter.tolist()):
        fixed = solve(cost[k : k + 1], a[k : k + 1], b[k : k + 1], eps[k], tol=0.0, max_iter=n_iter)
        assert fixed.status.item() == MAX_ITER
        torch.testing.assert_close(fixed.u, ours.u[k : k + 1], rtol=0, atol=1e-12)
        before = solve(
            cost[k : k + 1], a[k : k + 1], b[k : k + 1], eps[k], tol=0.0, max_iter=n_iter - 1
        )
        assert before.error > 1e-5
    last = solve(cost, a, b, eps, tol=1e-5, max_iter=int(ours.n_iter[1]))
    assert last.status.tolist() == [CONVERGED, CONVERGED, MAX_ITER]


def test_shared_operands_are_broadcast():
    cost, a, b = inputs()
    ours = solve(cost[:1], a, b[:1], batch=3)
    explicit = solve(cost[:1].expand(3, -1, -1).contiguous(), a, b[:1].expand(3, -1).contiguous())
    assert_bits(ours, explicit)
    plan = reference.sinkhorn_plan(cost[:1], eps_of(0.1), None, ours.u, ours.v, None)
    torch.testing.assert_close(plan.sum(2), a)


def test_costs_beyond_the_range_of_float32():
    """An overflowing entry is a forbidden cell; a problem without a finite plan is NON_FINITE."""
    cost = cost_of(2, 3, 3, dtype=torch.float32)
    cost[0, 0, 1] = 3e38
    cost[1] = 3e38
    ours = solve(cost, eps=0.05, tol=1e-3, max_iter=300)
    assert ours.status.tolist() == [CONVERGED, NON_FINITE]
    assert ours.value[0].isfinite() and plan_of(cost, ours, 0.05)[0, 0, 1] == 0


def test_denormal_masses():
    cost, a, b = inputs(torch.float32)
    a[:, 0], b[:, 0] = 1e-40, 1e-42
    ours = solve(cost, a, b, rho=(1.0, 1.0), max_iter=200, tol=1e-5)
    assert ours.status.tolist() == [CONVERGED] * 3
    assert ours.f.isfinite().all() and ours.u[:, 0].isfinite().all()
