"""Exact transport: certificates of optimality, other solvers, statuses, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkernels import BackendUnavailable
from fedkernels.testing import poisoned_empty, with_layout
from fedkernels.transport.emd import EmdResult, emd
from fedkernels.transport.ops.emd import emd as op
from tests.ops.kit import needs_extension, with_threads

pytestmark = [needs_extension, pytest.mark.once]

CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)
EPS = torch.finfo(torch.float64).eps


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(*shape: int, seed: int = 1) -> Tensor:
    mass = drawn(*shape, seed=seed) + 0.01
    return mass / mass.sum(-1, keepdim=True)


def assert_optimal(cost: Tensor, a: Tensor, b: Tensor, result: EmdResult) -> None:
    """A feasible plan and feasible duals of equal value: that proves both optimal.

    All in double. A marginal is a sum of at most n + m cells, whose rounding is relative to the
    total; a dual is a sum along the tree, relative to the largest cost.
    """
    n, m = cost.shape[-2:]
    size, total = float(cost.abs().max()), float(a.sum(-1).max())
    length = n + m
    plan, f, g = result.plan, result.f, result.g
    assert bool((result.status == CONVERGED).all())
    assert float(plan.min()) >= 0
    assert bool(((plan > 0).sum((-2, -1)) <= length - 1).all())
    close = {"rtol": 0, "atol": length * EPS * total}
    torch.testing.assert_close(plan.sum(-1), a.expand_as(plan.sum(-1)), **close)
    torch.testing.assert_close(plan.sum(-2), b.expand_as(plan.sum(-2)), **close)
    reduced = cost - f[..., :, None] - g[..., None, :]
    assert float(reduced.min()) >= -4 * EPS * size
    # Above: the tolerance of the search, plus the rounding of the duals themselves.
    assert float((reduced * (plan > 0)).max()) <= (16 + length) * EPS * size
    dual = (a * f).sum(-1) + (b * g).sum(-1)
    torch.testing.assert_close(dual, result.value, rtol=0, atol=(16 + length) * EPS * size * total)
    torch.testing.assert_close(
        (plan * cost).sum((-2, -1)), result.value, rtol=0, atol=length * EPS * size * total
    )


SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 7), (8, 8), (16, 16), (17, 9), (33, 64), (64, 64)]


@pytest.mark.parametrize(("n", "m"), [*SIZES, (200, 150)])
def test_plan_and_duals_prove_each_other(n, m):
    cost, a, b = drawn(6, n, m) * 2 - 0.5, masses(6, n), masses(6, m, seed=2)
    assert_optimal(cost, a, b, emd(cost, a, b))
    uniform = emd(cost)
    rows, columns = (torch.full((k,), 1 / k, dtype=cost.dtype) for k in (n, m))
    assert_optimal(cost, rows, columns, uniform)


@pytest.mark.parametrize(
    "cost",
    [
        torch.ones(4, 12, 12).double(),
        torch.zeros(4, 12, 12).double(),
        (drawn(4, 12, 12) * 3).floor(),  # ties everywhere
        (torch.arange(12.0)[:, None] - torch.arange(12.0)).abs().expand(4, 12, 12).double(),
        (drawn(4, 12, 1) + drawn(4, 1, 12, seed=3)),  # every plan is optimal
        drawn(4, 12, 12) * 1e-200,
        drawn(4, 12, 12) * 1e200,
    ],
    ids=["constant", "zero", "integers", "line", "rank one", "tiny", "huge"],
)
def test_degenerate_costs(cost):
    twelfth = torch.full((12,), 1 / 12, dtype=cost.dtype)
    assert_optimal(cost, twelfth, twelfth, emd(cost))
    a, b = masses(4, 12), masses(4, 12, seed=4)
    assert_optimal(cost, a, b, emd(cost, a, b))
    few = torch.tensor([0.0, 4, 0, 2, 2, 0, 0, 4, 0, 0, 4, 0]).double()  # zeros, and sums that tie
    assert_optimal(cost, few, few.flip(0), emd(cost, few, few.flip(0)))


def test_the_assignment_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    for n in (1, 2, 5, 16, 31, 100):
        cost = drawn(3, n, n, seed=n)
        result = emd(cost)
        for k in range(3):
            rows, columns = optimize.linear_sum_assignment(cost[k].numpy())
            expected = float(cost[k].numpy()[rows, columns].mean())
            assert result.value[k].item() == pytest.approx(expected, rel=4 * n * EPS)
            assert np.array_equal(result.plan[k].argmax(1).numpy(), columns)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (7, 5), (16, 16), (40, 61)])
def test_the_value_of_pot(n, m):
    ot = pytest.importorskip("ot")
    cost, a, b = drawn(5, n, m), masses(5, n), masses(5, m, seed=2)
    a[1, : n // 2] = 0
    a[1] /= a[1].sum()
    result = emd(cost, a, b)
    for k in range(5):
        plan = ot.emd(a[k].numpy(), b[k].numpy(), cost[k].numpy())
        expected = float((plan * cost[k].numpy()).sum())
        assert result.value[k].item() == pytest.approx(expected, rel=4 * (n + m) * EPS)
        # Random costs have one optimal plan; POT's masses are rounded on their way.
        np.testing.assert_allclose(result.plan[k].numpy(), plan, rtol=0, atol=1e-14)


small = st.integers(0, 3)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data(), st.integers(1, 7), st.integers(1, 7))
def test_small_whole_problems(data, n, m):
    """Whole costs and masses, many zero, many equal: every tie that there can be."""
    cost = torch.tensor(data.draw(st.lists(small, min_size=n * m, max_size=n * m))).view(n, m)
    a = torch.tensor(data.draw(st.lists(small, min_size=n, max_size=n))).double()
    b = torch.zeros(m).double()
    for _ in range(int(a.sum())):  # unit by unit: the totals are equal
        b[data.draw(st.integers(0, m - 1))] += 1
    result = emd(cost.double(), a, b)
    assert_optimal(cost.double(), a, b, result)
    assert torch.equal(result.plan, result.plan.round())  # whole masses have a whole plan
    assert torch.equal(result.plan.sum(1), a) and torch.equal(result.plan.sum(0), b)


def test_points_without_mass_have_the_least_feasible_duals():
    """f_i = min_j (C_ij - g_j): what the entropic potentials tend to."""
    cost, a, b = drawn(3, 6, 8), masses(3, 6), masses(3, 8, seed=5)
    a[:, 2] = 0
    b[:, 4:6] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    result = emd(cost, a, b)
    assert_optimal(cost, a, b, result)
    held = (cost - result.g[:, None])[:, 2, [0, 1, 2, 3, 6, 7]].min(1).values
    assert torch.equal(result.f[:, 2], held)
    above = (cost - result.f[:, :, None]).min(1).values
    assert torch.equal(result.g[:, 4:6], above[:, 4:6])
    assert bool((result.plan[:, 2] == 0).all()) and bool((result.plan[:, :, 4:6] == 0).all())


def test_the_constant_between_the_duals():
    cost, a, b = drawn(5, 9, 4), masses(5, 9), masses(5, 4, seed=2)
    result = emd(cost, a, b)
    torch.testing.assert_close((a * result.f).sum(1), (b * result.g).sum(1), rtol=0, atol=1e-15)


def test_statuses_and_that_no_problem_disturbs_another():
    cost, a, b = drawn(10, 5, 7), masses(10, 5), masses(10, 7, seed=2)
    alone = [emd(cost[k], a[k], b[k]) for k in range(10)]
    cost, a, b = cost.clone(), a.clone(), b.clone()
    cost[1, 2, 3] = math.nan
    cost[2, 0, 0] = math.inf
    a[3, 1] = math.nan
    b[4, 6] = math.inf
    a[5, 0] = -0.1
    b[6] *= 1.00001
    b[7] *= 1 + 1e-7  # scaled away
    a[8] = 0
    b[8] = 0
    result = emd(cost, a, b)
    wanted = [0, 2, 2, 2, 2, 3, 3, 0, 0, 0]
    assert result.status.tolist() == wanted
    assert result.status.dtype == torch.uint8
    for k in (0, 9):
        for name in ("value", "f", "g", "plan", "status"):
            assert torch.equal(getattr(result, name)[k], getattr(alone[k], name)), (k, name)
    bad = [k for k in range(10) if wanted[k] > 1]
    for field in (result.value, result.f, result.g, result.plan):
        assert bool(field[bad].isnan().all())
        assert not bool(field[[k for k in range(10) if k not in bad]].isnan().any())
    assert_optimal(cost[7], a[7], b[7] / b[7].sum() * a[7].sum(), _pick(result, 7))
    assert result.value[8] == 0 and not result.plan[8].any() and not result.f[8].any()


def _pick(result: EmdResult, k: int) -> EmdResult:
    return EmdResult(*(getattr(result, n)[k] for n in ("value", "f", "g", "plan", "status")))


def test_totals_of_float32_may_differ_by_its_rounding():
    cost, a, b = drawn(2, 4, 4).float(), masses(4).float(), masses(4, seed=2).float()
    a = torch.stack([a * (1 + 5e-5), a * (1 + 2e-4)])
    assert emd(cost, a, b).status.tolist() == [CONVERGED, INFEASIBLE]


@pytest.mark.parametrize(
    ("n", "m", "a", "b", "status"),
    [
        (0, 3, None, None, INFEASIBLE),
        (0, 3, None, [0.0, 0, 0], EMPTY),
        (3, 0, [0.0, 0, 0], None, EMPTY),
        (3, 0, [0.0, 1, 0], None, INFEASIBLE),
        (0, 0, None, None, EMPTY),
        (1, 1, None, None, CONVERGED),
        (2, 2, [0.0, 0], None, CONVERGED),
        (2, 2, [0.0, 0], [1.0, 0], INFEASIBLE),
        (2, 2, [1e-310, 0], [0.0, 1e-310], CONVERGED),  # denormal
        (2, 2, [1e308, 1e308], None, NON_FINITE),  # a total that is none
    ],
)
def test_nothing_little_and_too_much(n, m, a, b, status):
    of = lambda mass: None if mass is None else torch.tensor(mass).double()  # noqa: E731
    a, b = of(a), of(b)
    result = emd(torch.ones(n, m).double(), a, b)
    assert result.status.item() == status
    assert result.value.isnan().item() == (status in (NON_FINITE, INFEASIBLE))
    if status == EMPTY:
        assert result.value == 0 and not result.f.any() and not result.g.any()
    assert result.plan.shape == (n, m)


def test_uniform_takes_the_other_sides_total():
    b = torch.tensor([1.0, 2.0, 3.0]).double()
    result = emd(drawn(4, 3), None, b)
    torch.testing.assert_close(result.plan.sum(1), torch.full((4,), 1.5).double())
    assert emd(drawn(0, 4, 3)).value.shape == (0,)


def test_padding_is_never_read():
    sizes = [(5, 7), (1, 1), (3, 2), (0, 4), (4, 0), (0, 0), (5, 1), (2, 7)]
    cost, a, b = drawn(8, 5, 7), masses(8, 5), masses(8, 7, seed=2)
    for k, (n, m) in enumerate(sizes):
        a[k, :n] /= a[k, :n].sum()
        b[k, :m] /= b[k, :m].sum()
        cost[k, n:], cost[k, :, m:], a[k, n:], b[k, m:] = (math.nan,) * 4
    result = emd(cost, a, b, sizes=torch.tensor(sizes, dtype=torch.int32))
    uniform = emd(cost, sizes=torch.tensor(sizes))
    for k, (n, m) in enumerate(sizes):
        alone = emd(cost[k, :n, :m], a[k, :n], b[k, :m])
        for name, inside in (("value", ()), ("f", (n,)), ("g", (m,)), ("plan", (n, m))):
            padded = getattr(result, name)[k]
            valid = padded[tuple(slice(0, end) for end in inside)]
            torch.testing.assert_close(valid, getattr(alone, name), rtol=0, atol=0, equal_nan=True)
            if alone.status < 2:
                assert padded.abs().sum() == valid.abs().sum(), (k, name)  # zero outside
        assert result.status[k] == alone.status
        torch.testing.assert_close(
            uniform.value[k], emd(cost[k, :n, :m]).value, rtol=0, atol=0, equal_nan=True
        )


def test_one_size_for_all():
    cost = drawn(3, 4, 5)
    for sizes in (torch.tensor([[2, 3]]), torch.tensor([2, 3])):
        assert torch.equal(emd(cost, sizes=sizes).value, emd(cost[:, :2, :3]).value)


def test_one_cost_or_one_row_of_masses_for_all():
    cost, a, b = drawn(4, 3), masses(5, 4), masses(3)
    shared = emd(cost, a, b)
    full = emd(cost.expand(5, 4, 3), a, b.expand(5, 3))
    for name in ("value", "f", "g", "plan"):
        assert torch.equal(getattr(shared, name), getattr(full, name))
    assert emd(cost, masses(4), b).value.shape == ()
    assert emd(cost, masses(4)[None], b).value.shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_solved_in_double(dtype):
    cost = drawn(3, 6, 6).to(dtype)
    a = masses(3, 6)
    a = ((a * 64).round() / 64).to(dtype)  # exact in every dtype, with an exact total
    b = a.flip(1)
    narrow, wide = emd(cost, a, b), emd(cost.double(), a.double(), b.double())
    for name in ("value", "f", "g", "plan"):
        assert getattr(narrow, name).dtype == torch.float32
        assert torch.equal(getattr(narrow, name), getattr(wide, name).float())


def test_the_same_bits_for_every_order_number_of_threads_and_layout():
    cost, a, b = drawn(300, 9, 11), masses(300, 9), masses(300, 11, seed=2)
    one = with_threads(1, lambda: emd(cost, a, b))
    for threads in (2, 4):
        many = with_threads(threads, lambda: emd(cost, a, b))
        assert torch.equal(one.plan, many.plan) and torch.equal(one.f, many.f)
    order = torch.randperm(300)
    mixed = emd(cost[order], a[order], b[order])
    assert torch.equal(mixed.plan, one.plan[order]) and torch.equal(mixed.g, one.g[order])
    for layout in ("strided", "transposed", "padded"):
        laid = emd(*(with_layout(t, layout) for t in (cost, a, b)))
        assert torch.equal(laid.plan, one.plan)


def test_every_output_is_written():
    cost = drawn(4, 3, 5)
    plain = emd(cost)
    with poisoned_empty():
        assert torch.equal(emd(cost).plan, plain.plan)


def test_a_call_ends_when_the_pivots_run_out():
    cost, a, b = drawn(4, 20, 20), masses(4, 20), masses(4, 20, seed=2)
    best = emd(cost, a, b).value
    for pivots in (0, 1, 5):
        value, f, g, plan, status = op(cost, a, b, None, 4, 1e-6, pivots)
        assert status.tolist() == [MAX_ITER] * 4
        assert bool((value > best).all())
        torch.testing.assert_close(plan.sum(2), a)
        torch.testing.assert_close(plan.sum(1), b)
        assert float((cost - f[:, :, None] - g[:, None]).min()) >= -4 * EPS
    assert op(cost, a, b, None, 4, 1e-6, 1000)[4].tolist() == [CONVERGED] * 4


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"cost must be \(n, m\) or \(B, n, m\)", {"cost": torch.ones(3)}),
        (TypeError, "cost must be a tensor", {"cost": [[1.0]]}),
        (TypeError, "cost must be float32", {"cost": torch.ones(2, 3).int()}),
        (TypeError, "a must be a floating tensor", {"a": torch.ones(2).int()}),
        (ValueError, r"a must be \(2,\) or \(B, 2\)", {"a": torch.ones(3)}),
        (ValueError, r"b must be \(3,\) or \(B, 3\)", {"b": torch.ones(2)}),
        (ValueError, "cost holds 4 problems and b 5", {"b": torch.ones(5, 3)}),
        (TypeError, "sizes must be an integer tensor", {"sizes": torch.ones(4, 2)}),
        (ValueError, r"sizes must be \(B, 2\)", {"sizes": torch.ones(4, 3).long()}),
        (ValueError, "sizes must lie in the block", {"sizes": torch.full((4, 2), 3)}),
        (ValueError, "sizes must lie in the block", {"sizes": torch.full((4, 2), -1)}),
        (BackendUnavailable, "runs on the CPU", {"cost": torch.ones(4, 2, 3, device="meta")}),
    ],
)
def test_errors_name_what_and_where(error, message, change):
    arguments = {"cost": torch.ones(4, 2, 3), **change}
    with pytest.raises(error, match=message):
        emd(**arguments)


def test_without_the_compiled_ops_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(emd_module_of(), "is_built", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"emd: .*cpu: not built: "):
        emd(torch.ones(2, 2))


def emd_module_of():
    """The module: the package may hold the function of the same name."""
    import sys

    return sys.modules["fedkernels.transport.emd"]


def test_the_op_and_a_compiled_call():
    cost, a = drawn(3, 4, 5), masses(3, 4)
    sizes = torch.tensor([[4, 5], [2, 3], [0, 0]])
    torch.library.opcheck(op, (cost, a, None, sizes, 3, 1e-6, 1000))
    run = torch.compile(lambda c, m: emd(c, m).value, backend="aot_eager", fullgraph=True)
    assert torch.equal(run(cost, a), emd(cost, a).value)
    for batch in (5, 7):  # made dynamic once, then never compiled again
        cost, a = drawn(batch, 4, 5), masses(batch, 4)
        with torch.compiler.set_stance("default" if batch == 5 else "fail_on_recompile"):
            assert torch.equal(run(cost, a), emd(cost, a).value)
