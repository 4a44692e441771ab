"""The compiled ops for points: their values, against the reference and a long double oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkernels.testing import assert_within_budget
from fedkernels.transport import reference
from fedkernels.transport.ops import primitives
from tests.ops.kit import needs_extension
from tests.ops.transport import dense_points as dense
from tests.ops.transport.problems import CONVERGED, MAX_ITER, Solved, eps_of, masses_of

pytestmark = needs_extension
INF = math.inf
CPU = primitives("cpu")
DTYPES = [torch.float32, torch.float64]


def cloud(batch, n, dim, *, seed=0, offset=0.0, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, n, dim, generator=generator, dtype=torch.float64) - 0.5
    return (points + offset).to(dtype)


def forward(
    ops, x, y, a=None, b=None, eps=0.1, *, sizes=None, g0=None, metric=0, rho=(INF, INF),
    max_iter=10, tol=0.0, sor=False, symmetric=False, batch=None,
) -> Solved:  # fmt: skip
    eps = eps if isinstance(eps, Tensor) else eps_of(eps)
    batch = max(len(x), len(y)) if batch is None else batch
    return Solved(
        *ops.sinkhorn_points_forward(
            x, y, a, b, eps, sizes, g0, batch, metric, *rho, max_iter, tol, sor, symmetric
        )
    )


# (n, m, D, eps, rho, offset): below, at and past whole panels of every instruction set and stripes.
CASES = {
    "one": (1, 1, 3, 0.1, (INF, INF), 0.0),
    "one row": (1, 37, 2, 0.1, (INF, INF), 0.0),
    "one column": (19, 1, 2, 0.1, (INF, INF), 0.0),
    "odd": (17, 23, 3, 0.05, (INF, INF), 0.0),
    "stripes": (131, 67, 5, 0.05, (INF, INF), 0.0),
    "deep": (33, 40, 200, 2.0, (INF, INF), 0.0),
    "unbalanced": (65, 31, 8, 0.2, (0.7, 1.5), 0.0),
    "semi-unbalanced": (31, 64, 8, 0.2, (INF, 0.5), 0.0),
    "far": (48, 33, 4, 0.1, (INF, INF), 1000.0),
    "small eps": (40, 40, 2, 0.004, (INF, INF), 0.0),  # leaves the range of a sweep at the start
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_forward_within_budget(case, metric, dtype):
    n, m, dim, eps, rho, offset = CASES[case]
    if metric == 2:
        offset = 0.0  # angles between points far out in one direction are all 0
    x = cloud(2, n, dim, offset=offset, dtype=dtype)
    y = cloud(2, m, dim, seed=1, offset=offset, dtype=dtype)
    a, b = masses_of(2, n, dtype=dtype), masses_of(2, m, seed=1, dtype=dtype)
    if n > 30:  # a few points without mass
        a[:, 5] = 0
        a /= a.sum(1, keepdim=True)
    options = {"eps": eps, "metric": metric, "rho": rho, "max_iter": 12}
    ours = forward(CPU, x, y, a, b, **options)
    base = forward(reference, x, y, a, b, **options)
    assert ours.status.tolist() == [MAX_ITER] * 2 and ours.n_iter.tolist() == [12] * 2
    exact: dict[str, list[np.ndarray]] = {}
    for k in range(2):
        masses = dense.wide(a[k]), dense.wide(b[k])
        if math.isinf(rho[0]) and math.isinf(rho[1]):
            masses = masses[0], masses[1] * (masses[0].sum() / masses[1].sum())
        cost = dense.costs(dense.wide(x[k]), dense.wide(y[k]), metric)
        scale = torch.tensor(math.log2(math.e) / eps, dtype=dtype).item()
        result = dense.iterate(cost, *masses, eps, scale=scale, rho=rho, steps=12)
        for name, value in result.items():
            exact.setdefault(name, []).append(value)
    for name in ("value", "linear", "f", "g", "u", "v", "r", "c"):
        true = np.stack(exact[name])
        mine, theirs = getattr(ours, name), getattr(base, name)
        if name in ("u", "v"):
            finite = np.isfinite(true)
            assert (mine[torch.from_numpy(~finite)] == -INF).all()
            mine, theirs = (t[torch.from_numpy(finite)] for t in (mine, theirs))
            true = true[finite]
        check(mine, theirs, true, name, cost, eps, dim)


def noise(dtype: torch.dtype, cost: np.ndarray, eps: float, dim: int) -> float:
    """How far log2 of an entry of the plan may be off: 4 roundings of (1 + largest C / eps), the
    formula of transport's accuracy; in float64, where the oracle is exact, each product of D terms
    adds its own sqrt(D)."""
    length = math.sqrt(dim) if dtype == torch.float64 else 1.0
    return 4 * torch.finfo(dtype).eps * length * (1 + float(cost.max()) / eps)


def check(mine, base, true, name, cost, eps, dim) -> None:
    """Within the noise of K, which every result carries, or within the budget: where the reference
    happens to be exact (one row, a potential of 0) the budget asks for more than T holds."""
    unit = {"f": eps, "g": eps, "u": 1.0, "v": 1.0}.get(name, float(np.abs(true).max()))
    error = np.abs(dense.wide(mine) - true).max()
    if error > noise(mine.dtype, cost, eps, dim) * unit:
        assert_within_budget(mine, base, true, name=name, sum_length=max(true.size, dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1, 3), (17, 23, 3), (131, 67, 5), (33, 70, 40)])
def test_plan_products_and_gradients(size, metric, dtype):
    n, m, dim = size
    eps = 0.05 * dim
    x, y = cloud(2, n, dim, dtype=dtype), cloud(2, m, dim, seed=1, dtype=dtype)
    y[:, 0] = x[:, 0]  # a distance of 0
    if metric == 2 and n > 1:
        x[:, 1] = 0
    base = forward(reference, x, y, eps=eps, metric=metric)
    u, v = base.u, base.v
    args = (x, y, eps_of(eps), None, metric, u, v)
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    V, W = random(2, m, 3), random(2, n, 19)
    w0, w1, alpha, beta = random(2), random(2), random(2, n), random(2, m)
    plan = CPU.sinkhorn_points_plan(*args, w0)
    right = CPU.sinkhorn_points_apply(*args, V, False)
    left = CPU.sinkhorn_points_apply(*args, W, True)
    gradients = CPU.sinkhorn_points_backward(*args, w0, w1, alpha, beta)
    simple = CPU.sinkhorn_points_backward(*args, w0, w1 * 0, None, None)
    for k in range(2):
        xs, ys = dense.wide(x[k]), dense.wide(y[k])
        cost = dense.costs(xs, ys, metric)
        s = np.longdouble(torch.tensor(math.log2(math.e) / eps, dtype=dtype).item())
        P = np.exp2(-s * cost + dense.wide(u[k])[:, None] + dense.wide(v[k]))
        # Each entry of the plan errs by a few ulp of the largest term of its exponent, and what is
        # built from entries by no more than that share of the sum of magnitudes.
        terms = (
            1 + np.abs(s * cost).max() + np.abs(dense.wide(u)).max() + np.abs(dense.wide(v)).max()
        )
        share = 4 * float(terms) * torch.finfo(dtype).eps + dim**0.5 * 4 * torch.finfo(dtype).eps

        def close(actual, exact, size, share=share):
            assert (np.abs(dense.wide(actual) - exact) <= share * size + 1e-300).all()

        close(plan[k], P * float(w0[k]), P * abs(float(w0[k])))
        close(right[k], P @ dense.wide(V[k]), P @ np.abs(dense.wide(V[k])))
        close(left[k], P.T @ dense.wide(W[k]), P.T @ np.abs(dense.wide(W[k])))
        dense_x = dense.cost_gradient(xs, ys, metric)
        dense_y = dense.cost_gradient(ys, xs, metric).transpose(1, 0, 2)
        # Sums of x_i - y_j are formed from x_i and y_j: the sizes of these count, in each over the
        # distance where it is divided by.
        far = max(np.abs(xs - xs.mean(0)).max(), np.abs(ys - xs.mean(0)).max())
        lengths = [np.sqrt((side**2).sum(1)) for side in (xs, ys)]
        for (dx, dy), weight, parts in (
            (gradients, (float(w0[k]), float(w1[k])), (alpha[k], beta[k])),
            (simple, (float(w0[k]), 0.0), (alpha[k] * 0, beta[k] * 0)),
        ):
            weights = weight[0] + weight[1] * cost
            size = abs(weight[0]) + abs(weight[1]) * cost
            for part, axis in ((dense.wide(parts[0]), 1), (dense.wide(parts[1]), 0)):
                weights = weights + np.expand_dims(part, axis)
                size = size + np.abs(np.expand_dims(part, axis))
            reach = np.full_like(cost, 4 * far * dim**0.5)
            if metric == 1:
                reach = reach / np.maximum(cost, 1e-3)
                reach[0, 0] = 0
            if metric == 2:
                shortest = [np.where(length == 0, np.inf, length) for length in lengths]
                reach = 4 / np.minimum(shortest[0][:, None], shortest[1][None])
            close(
                dx[k],
                np.einsum("ij,ijd->id", P * weights, dense_x),
                (P * size * reach).sum(1)[:, None],
            )
            close(
                dy[k],
                np.einsum("ij,ijd->jd", P * weights, dense_y),
                (P * size * reach).sum(0)[:, None],
            )
        if metric == 2 and n > 1:
            assert not gradients[0][k, 1].any()  # a zero vector


@pytest.mark.parametrize("metric", [0, 1, 2])
def test_points_that_coincide(metric):
    """A distance of 0 is exactly 0 and pulls nowhere; a cosine distance of 0 to a few roundings."""
    x = cloud(1, 40, 300, offset=3.0)
    zeros = torch.zeros(1, 40)
    args = (x, x, eps_of(0.1), None, metric, zeros, zeros)
    diagonal = CPU.sinkhorn_points_plan(*args, None)[0].diagonal()
    if metric < 2:
        assert (diagonal == 1).all()
    else:  # exp2(-s C) with s = 14.4 and C a rounding or three of 1
        torch.testing.assert_close(diagonal, torch.ones(40), rtol=0, atol=1e-5)
    one = torch.ones(1)
    same = torch.cat([x[:, :1], x[:, :1]], 1)
    few = torch.zeros(1, 2)
    dx, dy = CPU.sinkhorn_points_backward(
        same, same, eps_of(0.1), None, metric, few, few, one, one, None, None
    )
    bound = 0.0 if metric < 2 else 1e-6
    assert dx.abs().max() <= bound and dy.abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [0, 2])
def test_symmetric(metric, dtype):
    x, a = cloud(2, 45, 4, dtype=dtype), masses_of(2, 45, dtype=dtype)
    options = {"eps": 0.05, "metric": metric, "symmetric": True}
    ours = forward(CPU, x, x, a, a, max_iter=9, **options)
    base = forward(reference, x, x, a, a, max_iter=9, **options)
    assert torch.equal(ours.f, ours.g) and torch.equal(ours.u, ours.v)
    for k in range(2):
        mass, cost = dense.wide(a[k]), dense.costs(*[dense.wide(x[k])] * 2, metric)
        scale = torch.tensor(math.log2(math.e) / 0.05, dtype=dtype).item()
        true = dense.iterate(cost, mass, mass, 0.05, scale=scale, steps=9, symmetric=True)
        for name in ("value", "linear", "f", "u", "r", "c"):
            mine, theirs = getattr(ours, name)[k], getattr(base, name)[k]
            check(mine, theirs, np.asarray(true[name]), name, cost, 0.05, 4)
    done = forward(CPU, x, x, a, a, max_iter=500, tol=1e-5, **options)
    assert done.status.tolist() == [CONVERGED] * 2 and (done.error <= 2e-5).all()
    assert (done.n_iter < 100).all()


@pytest.mark.parametrize("sor", [False, True])
def test_early_exit_is_where_the_reference_exits(sor):
    x, y = cloud(3, 50, 2, dtype=torch.float64), cloud(3, 45, 2, seed=1, dtype=torch.float64)
    options = {"eps": eps_of(0.5, 0.05, 0.01), "max_iter": 700, "tol": 1e-7, "sor": sor}
    ours, base = (forward(ops, x, y, **options) for ops in (CPU, reference))
    assert ours.status.tolist() == base.status.tolist()
    assert ours.n_iter.tolist() == base.n_iter.tolist()
    for name in ("value", "linear", "f", "r"):
        torch.testing.assert_close(getattr(ours, name), getattr(base, name), rtol=1e-9, atol=1e-9)
    # The test needs a positive tolerance: with 0 every iteration runs.
    assert forward(CPU, x[:1], x[:1], max_iter=30).n_iter.tolist() == [30]


def test_over_relaxation_needs_fewer_iterations():
    x, y = cloud(4, 64, 2), cloud(4, 64, 2, seed=1)
    plain, relaxed = (
        forward(CPU, x, y, eps=0.01, max_iter=2000, tol=1e-5, sor=sor) for sor in (False, True)
    )
    assert (relaxed.status == CONVERGED).all() and (plain.status == CONVERGED).all()
    assert (relaxed.n_iter.double() < plain.n_iter / 2).all()
    # Both are within the tolerance of the optimum: <P, C> moves by at most tol max(C) (C <= 2).
    torch.testing.assert_close(relaxed.linear, plain.linear, rtol=0, atol=4e-5)
    torch.testing.assert_close(relaxed.value, plain.value, rtol=0, atol=4e-5)


def test_a_start_far_from_everything():
    """Points whose sums leave the range of float32 are solved around their largest terms."""
    x, y = cloud(1, 30, 2), cloud(1, 20, 2, seed=1)
    y[:, :4] += 40.0  # C / eps up to 3e4
    b = masses_of(1, 20, dtype=torch.float32)
    b[:, 7] = 1e-30
    b /= b.sum()
    g0 = torch.full((1, 20), 300.0)
    for start in (None, g0):
        ours = forward(CPU, x, y, None, b, eps=0.05, g0=start, max_iter=60)
        exact = forward(
            reference, x.double(), y.double(), None, b.double(), eps=0.05,
            g0=None if start is None else start.double(), max_iter=60,
        )  # fmt: skip
        assert ours.status.item() == MAX_ITER
        # Rounding of C / eps: 2^-23 * 3e4 = 4e-3, of the entries near it.
        torch.testing.assert_close(ours.value.double(), exact.value, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.c.double(), exact.c, rtol=1e-2, atol=1e-12)
