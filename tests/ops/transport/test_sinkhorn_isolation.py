"""A problem's bits are its own: neighbours, order, padding and threads change none."""

from __future__ import annotations

import pytest
import torch

from fedkernels import sinkhorn, sinkhorn_points
from fedkernels.testing import poisoned_empty
from tests.ops.kit import assert_same_bits, needs_extension, with_threads
from tests.ops.transport.calls import (
    CONVERGED,
    INFEASIBLE,
    NON_FINITE,
    everything,
    masses,
    rows,
    uniform,
)

pytestmark = needs_extension
OPTIONS = {"eps": 0.05, "max_iter": 200, "backend": "cpu"}
SHAPES = [(5, 4), (16, 16), (33, 20), (20, 70)]


def results(cost, a, b, **more):
    """All results, and the gradients of value."""
    leaves = [t.detach().clone().requires_grad_() for t in (cost, a, b)]
    found = sinkhorn(*leaves, **{**OPTIONS, **more})
    value = torch.nan_to_num(found.value).sum()
    grads = torch.autograd.grad(value, leaves)
    return {**everything(found), **dict(zip(("dcost", "da", "db"), grads, strict=True))}


def batch(count, n, m, dtype=torch.float32):
    return (
        uniform(count, n, m, dtype=dtype, seed=1),
        masses(count, n, dtype=dtype, seed=2),
        masses(count, m, dtype=dtype, seed=3),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho", [None, 1.0])
def test_bad_neighbours_change_no_bit(shape, dtype, rho):
    cost, a, b = batch(37, *shape, dtype)
    good = results(cost, a, b, rho=rho)
    cost[3, 0, 0], cost[11, -1, -1], a[17, 0], b[20, 1] = torch.nan, torch.inf, -1.0, torch.nan
    a[25] *= 2.0
    bad = torch.tensor([3, 11, 17, 20] + ([25] if rho is None else []))
    kept = torch.ones(37, dtype=torch.bool)
    kept[torch.cat([bad, torch.tensor([25])])] = False
    found = results(cost, a, b, rho=rho)
    assert_same_bits(rows(found, kept), rows(good, kept))
    expected = [NON_FINITE, NON_FINITE, INFEASIBLE, NON_FINITE, INFEASIBLE][: len(bad)]
    assert found["status"][bad].tolist() == expected
    assert (found["n_iter"][bad] == 0).all()
    for name in ("value", "linear_cost", "f", "g"):
        assert found[name][bad].isnan().all(), name
    for name in ("dcost", "da", "db"):
        assert (found[name][bad] == 0).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [{}, {"rho": 1.0}, {"mode": "log"}, {"solver": "sinkhorn"}])
def test_alone_permuted_and_padded(shape, dtype, more):
    n, m = shape
    cost, a, b = batch(37, n, m, dtype)
    whole = results(cost, a, b, **more)
    for k in (0, 17, 36):
        alone = results(cost[k : k + 1], a[k : k + 1], b[k : k + 1], **more)
        assert_same_bits(alone, rows(whole, slice(k, k + 1)), k)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert_same_bits(results(cost[order], a[order], b[order], **more), rows(whole, order))

    block = torch.full((37, n + 13, m + 7), torch.nan, dtype=dtype)
    wide_a, wide_b = block[:, :, 0].clone(), block[:, 0].clone()
    block[:, :n, :m], wide_a[:, :n], wide_b[:, :m] = cost, a, b
    sizes = torch.tensor([[n, m]]).expand(37, 2)
    padded = results(block, wide_a, wide_b, sizes=sizes, **more)
    inside = {"f": (n,), "da": (n,), "g": (m,), "db": (m,), "plan": (n, m), "dcost": (n, m)}
    for name, t in padded.items():
        valid = (slice(None), *(slice(size) for size in inside.get(name, ())))
        rest = t.clone()
        rest[valid] = 0
        assert not rest.any(), name
        t = t[valid]
        if name in ("da", "db"):
            # Totals and the projection's mean are sums over the block, each in its own order.
            torch.testing.assert_close(t, whole[name])
        else:
            assert_same_bits({name: t}, whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_runs(shape):
    arguments = batch(37, *shape)
    first = with_threads(1, lambda: results(*arguments))
    for threads in (1, 2, 3):
        assert_same_bits(with_threads(threads, lambda: results(*arguments)), first, threads)


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_points_alone_permuted_and_beside_a_bad_one(metric):
    x, y = uniform(5, 19, 6, seed=1), uniform(5, 23, 6, seed=2)

    def run(x, y):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        found = sinkhorn_points(*leaves, metric=metric, eps=0.2, max_iter=50, backend="cpu")
        grads = torch.autograd.grad(torch.nan_to_num(found.value).sum(), leaves)
        return {**everything(found), "dx": grads[0], "dy": grads[1]}

    whole = run(x, y)
    assert_same_bits(run(x[2:3], y[2:3]), rows(whole, slice(2, 3)))
    order = torch.tensor([4, 0, 3, 1, 2])
    assert_same_bits(run(x[order], y[order]), rows(whole, order))
    x[1, 3, 2] = torch.nan
    found, kept = run(x, y), torch.tensor([0, 2, 3, 4])
    assert_same_bits(rows(found, kept), rows(whole, kept))
    assert found["status"][1] == NON_FINITE and found["value"][1].isnan()
    assert (found["dx"][1] == 0).all() and (found["dy"][1] == 0).all()


@pytest.mark.parametrize("grad", ["envelope", "implicit"])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4), (3, 0)])
def test_poisoned_memory_leaves_no_nan(shape, grad):
    cost = uniform(7, *shape)
    sizes = torch.tensor([[max(shape[0] - k % 3, 0), max(shape[1] - k % 2, 0)] for k in range(7)])
    leaf = cost.clone().requires_grad_()
    with poisoned_empty():
        found = sinkhorn(leaf, sizes=sizes, grad=grad, **OPTIONS)
        results = everything(found)
        results["product"] = found.apply(torch.ones(shape[1], 3))
        outputs = found.value if grad == "envelope" else found.value + found.linear_cost
        results["dcost"] = torch.autograd.grad(torch.nan_to_num(outputs).sum(), leaf)[0]
    solved = results["status"] <= 1
    assert solved.all() or 0 in shape
    for name, t in rows(results, solved).items():
        assert t.isfinite().all(), name
    assert results["dcost"].isfinite().all()
    assert (results["status"][solved] == CONVERGED).any() or not solved.any()
