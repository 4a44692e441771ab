"""The CUDA kernels of Sinkhorn on the host, against the specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels.testing import assert_within_budget
from tests.cuda_host.build import ORDERS
from tests.cuda_host.sinkhorn import (
    NAMES,
    SOURCE,
    VECTORS,
    Problems,
    alone,
    apply,
    plan,
    random_problems,
    solve,
)

CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)

# One problem of every class and on both sides of every limit, in one padded block. 129 x 9 is
# streamed, as is 5 x 1030, whose rows are longer than a block's registers.
LIMITS = [(1, 1), (4, 3), (2, 5), (8, 8), (9, 7), (16, 16), (17, 16), (3, 32), (33, 32), (64, 50)]
RAGGED = [*LIMITS, (65, 9), (128, 20), (129, 9), (0, 0)]


@pytest.fixture
def program(programs):
    return lambda variant="contracted": programs(SOURCE, variant)


def check(program, q: Problems) -> dict[str, Tensor]:
    """Everything that the kernels return, within budget; what they return."""
    found = solve(program, q)
    rounded, exact = q.reference(torch.float32), q.reference(torch.float64)
    assert torch.equal(found["status"], exact["status"])
    solved = found["n_iter"] > 0
    # A test that passes within rounding of tol may pass one iteration sooner or later.
    assert ((found["n_iter"] - exact["n_iter"]).abs() <= (1 if q.tol > 0 else 0)).all()
    same = found["n_iter"] == exact["n_iter"]

    # A plan is off by the rounding of K + u + v, of size |C| / eps, a few times over; so are sums
    # of it.
    # The error budget takes the reference's luck in one or a few numbers for its measure.
    largest = q.cost.nan_to_num(0, 0, 0).abs().max()
    relative = 8 * 2**-23 * (1 + largest / q.eps64)
    truth = q.plan(exact)
    mass = torch.where(solved[:, None, None], truth, 0.0).sum((1, 2))
    for name in ("r", "c"):
        off = (found[name] - exact[name]).abs().sum(1)
        assert (off <= relative * mass)[same & solved].all(), (name, off)
    for name, size in (("error", 1.0), ("linear", largest), ("value", largest)):
        off = (found[name] - exact[name]).abs()
        floor = 2**-23 * exact[name].abs()  # of a value that is rounded once
        assert (off <= relative * mass * size + floor)[same & solved].all(), (name, off)
    # Potentials may be near 0 but are rounded as K + u + v is, in units of eps.
    for name in VECTORS[:4]:
        unit = q.eps64 if name in "fg" else torch.full_like(q.eps64, math.log2(math.e))
        off = torch.where(found[name] == exact[name], 0.0, (found[name] - exact[name]).abs())
        assert (off <= (relative * unit)[:, None])[same].all(), (name, off.amax(1))
    distance = (plan(program, q, found).double() - truth).abs().sum((1, 2))
    theirs = (q.plan(rounded).double() - truth).abs().sum((1, 2))
    assert (distance <= 2 * theirs + 1e-6)[same & solved].all(), (distance, theirs)
    for name in ("value", "linear", "error", *VECTORS):  # of problems without a plan
        assert torch.equal(found[name][~solved], rounded[name][~solved]), name
    return found


@pytest.mark.parametrize("variant", ["contracted", "coarse"])
def test_every_class_in_one_padded_block(program, variant):
    check(program(variant), ragged())


@pytest.mark.parametrize(
    "options",
    [
        {"tol": 1e-3, "max_iter": 200},
        {"log": True, "max_iter": 6},
        {"rho": (1.0, 0.5)},
        {"rho": (0.3, math.inf), "tol": 1e-3},
        {"rho": (math.inf, 0.3)},
        {"max_iter": 1, "tol": 0.3},
        {"eps": 0.002, "max_iter": 20},
    ],
    ids=str,
)
def test_options(program, options):
    check(program(), on_chip(**options))
    check(program(), random_problems(1, 130, 7, **{**options, "max_iter": 12}))


def ragged(**options) -> Problems:
    n, m = (max(sides) for sides in zip(*RAGGED, strict=True))
    sizes = torch.tensor(RAGGED)
    return random_problems(len(RAGGED), n, m, sizes=sizes, **{"max_iter": 18, **options})


def on_chip(**options) -> Problems:
    sizes = torch.tensor([(3, 4), (7, 8), (16, 13), (30, 32), (50, 64)])
    return random_problems(len(sizes), 50, 64, seed=5, sizes=sizes, **options)


@pytest.mark.parametrize("log", [False, True])
def test_over_relaxation(program, log):
    relaxed(program(), on_chip(sor=True, tol=1e-4, max_iter=300, log=log), lag=1)


def test_over_relaxation_of_streamed_problems_lags_an_iteration(program):
    relaxed(program(), random_problems(2, 130, 12, sor=True, tol=1e-3, max_iter=100), lag=3)


def relaxed(program, q: Problems, lag: int) -> None:
    """The factor follows the error, whose rounding each order of summation has for itself: what is
    the same is where it ends, and about when."""
    found, exact = solve(program, q), q.reference(torch.float64)
    assert (found["status"] == CONVERGED).all() and (found["error"] < 1.05 * q.tol).all()
    assert (found["n_iter"] <= 1.1 * exact["n_iter"] + lag).all()
    plain = solve(program, q.with_(sor=False))["n_iter"]
    assert (found["n_iter"] <= plain).all() and found["n_iter"].sum() < plain.sum()
    # The last iteration was a plain one: columns are exact, up to the rounding of the plan.
    relative = 8 * 2**-23 * (1 + q.cost.max() / q.eps64)
    assert ((found["c"] - q.b).abs().sum(1) <= relative).all()
    # Two plans within tol of the same marginals.
    assert ((found["value"] - exact["value"]).abs() <= 2 * q.tol * q.cost.max()).all()
    short = solve(program, q.with_(max_iter=5))
    assert (short["n_iter"] <= 5).all() and short["value"].isfinite().all()


def test_rows_longer_than_a_block_s_registers(program):
    found = check(program(), random_problems(2, 19, 1030, max_iter=5, tol=0.02))
    assert (found["n_iter"] > 0).all()


def test_stops_at_the_iteration_that_is_within_tol(program):
    q = random_problems(6, 12, 10, tol=1e-3, max_iter=400, eps=torch.linspace(0.03, 0.5, 6))
    found = check(program(), q)
    assert len(set(found["n_iter"].tolist())) > 3 and (found["status"] == CONVERGED).all()
    short = check(program(), q.with_(max_iter=8))
    assert set(short["status"].tolist()) == {CONVERGED, MAX_ITER}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor], context: object) -> None:
    for name in NAMES:
        x, y = one[name].contiguous(), other[name].contiguous()
        assert x.numpy().tobytes() == y.numpy().tobytes(), (name, context)


def part(found: dict[str, Tensor], q: Problems, k: int) -> dict[str, Tensor]:
    n, m = q.cost.shape[1:] if q.sizes is None else q.sizes[k].tolist()
    extents = dict.fromkeys(("f", "u", "r"), n) | dict.fromkeys(("g", "v", "c"), m)
    return {
        name: found[name][k : k + 1, : extents[name]] if name in extents else found[name][k : k + 1]
        for name in NAMES
    }


def test_bits_depend_on_the_problem_alone(program):
    q = ragged(tol=2e-3, max_iter=24, eps=0.1)
    together = solve(program(), q)
    for order in ORDERS[1:]:
        assert_same_bits(solve(program(), q, order=order), together, order)
    for k, (n, m) in enumerate(RAGGED):
        if n > 0:
            single = solve(program(), alone(q, k))
            assert_same_bits(single, part(together, q, k), (n, m))
    for name in VECTORS:
        inside = torch.arange(together[name].shape[1]) < q.sizes[:, int(name in "gvc"), None]
        assert (together[name][~inside] == 0).all()


def test_a_bad_problem_changes_no_bit_of_another(program):
    q = random_problems(9, 14, 11, tol=1e-3, max_iter=60, g0=torch.zeros(9, 11))
    q = q.with_(eps=torch.full((9,), 0.1, dtype=torch.float64))
    before = solve(program(), q)
    for tensor in (q.cost, q.a, q.b, q.g0, q.eps):
        tensor.copy_(tensor.clone())
    q.cost[0, 13, 10] = math.nan
    q.cost[1, 0, 0] = math.inf
    q.a[2, 5] = -0.1
    q.b[3] *= 1.01
    q.b[4] *= 1 + 5e-5
    q.g0[5, 2] = math.inf
    q.eps[6] = 0.0
    q.a[7, 1] = math.nan
    after = solve(program(), q)
    expected = [NON_FINITE, NON_FINITE, INFEASIBLE, INFEASIBLE, CONVERGED, NON_FINITE, NON_FINITE]
    expected += [NON_FINITE, CONVERGED]
    assert after["status"].tolist() == expected
    assert_same_bits(part(after, q, 8), part(before, q, 8), "neighbour")
    reference = q.reference(torch.float32)
    assert torch.equal(after["status"], reference["status"])
    for name in NAMES:
        assert torch.equal(after[name].isnan(), reference[name].isnan()), name
    wide = random_problems(2, 130, 4, max_iter=5)
    before = solve(program(), wide)
    wide.cost[0, 129, 3] = math.nan
    after = solve(program(), wide)
    assert after["status"].tolist() == [NON_FINITE, MAX_ITER]
    assert after["f"][0].isnan().all() and after["v"][0].isnan().all()
    assert_same_bits(part(after, wide, 1), part(before, wide, 1), "neighbour")


@pytest.mark.parametrize("extents", [(6, 7), (20, 31), (40, 60), (131, 9)], ids=str)
def test_zero_masses(program, extents):
    q = random_problems(3, *extents, max_iter=12)
    q.a[0, 1:3] = 0
    q.b[0, [0, -1]] = 0
    q.a[1] = 0
    q.b[1] = 0
    q.a[0] /= q.a[0].sum()
    q.b[0] /= q.b[0].sum()
    found = check(program(), q)
    assert all(found[name].isfinite().all() for name in ("f", "g", "r", "c", "value"))
    assert found["value"][1] == 0 and found["n_iter"][1] == 0
    assert plan(program(), q, found)[1].count_nonzero() == 0
    free = check(program(), q.with_(rho=(1.0, 2.0)))
    assert free["value"].isfinite().all()


@pytest.mark.parametrize("sides", [(0, 0), (0, 3), (3, 0)], ids=str)
def test_empty_sides(program, sides):
    for given in (True, False):
        q = Problems(torch.empty(2, *sides), max_iter=3)
        if given:
            q = q.with_(a=torch.full((2, sides[0]), 0.5), b=torch.full((2, sides[1]), 0.5))
        found, expected = solve(program(), q), q.reference(torch.float32)
        assert torch.equal(found["status"], expected["status"]), (sides, given)
        assert torch.equal(found["value"].isnan(), expected["value"].isnan())
        for name in VECTORS:
            assert torch.equal(found[name].isnan(), expected[name].isnan()), name


def test_shared_operands_and_masses_that_are_not_given(program):
    q = random_problems(3, 10, 6)
    eps = torch.tensor([0.5], dtype=torch.float64)
    shared = Problems(q.cost[:1], q.a[:1], q.b[:1], eps, g0=torch.rand(1, 6), batch=3)
    found = check(program(), shared)
    assert all(torch.equal(found[name][0], found[name][2]) for name in NAMES)
    check(program(), Problems(q.cost, eps=0.1))
    check(program(), Problems(q.cost, a=3 * q.a, eps=0.1, g0=torch.rand(3, 6)))
    check(
        program(), Problems(q.cost, b=q.b, eps=0.1, sizes=torch.tensor([(2, 3), (10, 6), (7, 1)]))
    )


def test_a_window_that_leaves_the_safe_range_is_done_in_the_log_domain(program):
    # Two far clusters with unequal masses: each iteration scales them apart by 2^10, up to the
    # 2^480 that lie between them. Windows of 16 iterations leave 2^96; what underflowed returns.
    rows, columns = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    cost = (rows[:, None] - columns).square()[None] + 1e-3 * torch.rand(1, 5, 4)
    a = torch.tensor([[0.5, 0.499, 0.0004, 0.0003, 0.0003]])
    b = torch.tensor([[0.001, 0.333, 0.333, 0.333]])
    q = Problems(cost, a, b, eps=0.003, max_iter=70)
    assert (solve(program(), q.with_(max_iter=30))["f"].abs().max() > 0.5).all()
    check(program(), q)
    many = q.with_(cost=cost.repeat(1, 26, 1), a=(a / 26).repeat(1, 26))
    check(program(), many)


@pytest.mark.parametrize("transpose", [False, True])
def test_products_with_the_plan(program, transpose):
    q = on_chip(max_iter=5)
    found = solve(program(), q)
    V = torch.randn(len(q.cost), 50 if transpose else 64, 37)
    inside = torch.arange(V.shape[1]) < q.sizes[:, 0 if transpose else 1, None]
    V[~inside] = math.nan
    result = apply(program(), q, found, V, transpose)
    P, W = plan(program(), q, found), torch.where(inside[..., None], V, 0.0)
    P = P.mT if transpose else P
    assert_within_budget(result, P @ W, P.double() @ W.double())


def test_a_scale_of_zero_evaluates_nothing(program):
    q = random_problems(3, 5, 7, max_iter=4)
    found = solve(program(), q)
    found["u"][1] = math.nan
    scaled = plan(program(), q, found, torch.tensor([2.0, 0.0, -1.0]))
    P = plan(program(), q, found)
    assert torch.equal(scaled[[0, 2]], torch.tensor([2.0, -1.0])[:, None, None] * P[[0, 2]])
    assert scaled[1].count_nonzero() == 0


def test_memory_under_the_sanitizers(program):
    sizes = torch.tensor([(5, 3), (40, 12), (130, 2), (3, 66)])
    check(program("sanitized"), random_problems(4, 130, 66, max_iter=2, sizes=sizes))
