"""The nearest prototypes: indices against direct differences, ties, masks, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkernels import prototype_assign
from fedkernels.testing import LAYOUTS, poisoned_empty, random_tensor
from tests.ops.kit import DTYPES, assert_same_bits, with_threads
from tests.ops.prototype.kit import METRICS, assert_right, backends, call, cpu

BACKEND = pytest.mark.parametrize("backend", backends("assign"))
KERNEL = pytest.mark.parametrize("backend", [cpu("assign")])
SIZES = [
    (1, 1, 1),
    (3, 5, 7),
    (48, 16, 16),
    (49, 17, 33),
    (97, 129, 20),
    (5, 300, 12),
    (1100, 40, 24),
    (20, 7, 600),
]


def direct(x, mu, metric):
    """Distances from differences, in the dtype of mu."""
    x = x.to(mu.dtype)
    if metric == "dot":
        return -(x[:, None] * mu).sum(2)
    if metric == "cosine":
        x, mu = (t / t.norm(dim=1, keepdim=True) for t in (x, mu))
        return (x[:, None] - mu).square().sum(2) / 2
    square = (x[:, None] - mu).square().sum(2)
    return square if metric == "sqeuclidean" else square.sqrt()


def assert_nearest(c, found, k):
    """Each index is that of a distance within rounding of the one that belongs there."""
    t = c.tensors
    exact = direct(t["x"].double(), t["prototypes"].double(), c.options["metric"])
    mask = t.get("mask")
    if mask is not None:
        exact = torch.where(mask, exact, torch.inf)
    best = exact.sort(dim=1).values[:, :k]
    missing = k - best.shape[1]
    if missing > 0:
        best = torch.cat([best, torch.full((len(best), missing), torch.inf)], 1)
    index, distance = found.index, found.distance
    assert index.dtype == torch.int64 and index.shape == distance.shape == best.shape
    assert torch.equal(index == -1, best == torch.inf)
    taken = exact.gather(1, index.clamp(min=0))
    taken = torch.where(index < 0, torch.inf, taken)
    finite = best[best.isfinite()]
    unit = torch.finfo(distance.dtype).eps
    d = t["x"].shape[1]
    size = (
        float(finite.abs().max()) if finite.numel() else 0.0
    )  # a cosine's or a dot's rounding is that of its terms
    if c.options["metric"] == "dot":
        size = float(t["x"].double().norm(dim=1).max() * t["prototypes"].double().norm(dim=1).max())
    slack = 8 * unit * (size if c.options["metric"] in ("dot", "cosine") else best.abs())
    assert ((taken <= best + slack + d * unit * best.abs()) | (best == torch.inf)).all()
    for row in index.tolist():
        used = [i for i in row if i >= 0]
        assert len(used) == len(set(used))


@KERNEL
@pytest.mark.parametrize("metric", METRICS)
def test_values_indices_and_gradients(metric, backend):
    for turn, size in enumerate(SIZES):
        for dtype, k in ((torch.float32, (1, 2, 5, 32)[turn % 4]), (torch.float64, 3)):
            mask = (None, "rows", "shared")[turn % 3]
            c = call("assign", *size, metric=metric, dtype=dtype, nearest=k, mask=mask)
            found = c.run(backend=backend)
            assert_nearest(c, found, k)
            expected = c.widened().run(backend="reference")
            torch.testing.assert_close(
                found.distance.double(), expected.distance.double(),
                rtol=(8 + size[2]) * float(torch.finfo(dtype).eps),
                atol=8 * float(torch.finfo(dtype).eps) * (size[2] if metric == "dot" else 1),
            )  # fmt: skip


@BACKEND
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_gradients(metric, dtype, backend):
    for k, mask in ((1, None), (3, "rows")):
        c = call("assign", 67, 9, 17, metric=metric, dtype=dtype, nearest=k, mask=mask)
        calls = c.rows(c.tensors["mask"].sum(1) >= k) if mask else c
        if dtype == torch.float64:
            results = calls.results(backend=backend)
            expected = calls.results(backend="reference")
            for name, value in results.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-12)
        else:
            assert_right(calls, backend, (k, mask))


@BACKEND
def test_the_gradient_is_that_of_the_distances_found(backend):
    for metric in METRICS:
        c = call("assign", 9, 5, 4, metric=metric, dtype=torch.float64, nearest=2).train()
        found = c.run(backend=backend)
        leaves = [c.tensors["x"], c.tensors["prototypes"]]
        weight = random_tensor((9, 2), dtype=torch.float64, seed=3)
        grads = torch.autograd.grad((found.distance * weight).sum(), leaves)
        picked = direct(*leaves, metric).gather(1, found.index)
        expected = torch.autograd.grad((picked * weight).sum(), leaves)
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@BACKEND
@pytest.mark.parametrize("metric", METRICS[:2])
@pytest.mark.parametrize("d", [2, 64])
def test_two_clusters_far_apart(metric, d, backend):
    """By the expansion alone most rows would name a wrong nearest."""
    signs = torch.tensor([1e4, -1e4])
    x = random_tensor((400, d), seed=1) + signs.repeat(200)[:, None]
    mu = random_tensor((16, d), seed=2) + signs.repeat(8)[:, None]
    found = prototype_assign(x, mu, metric=metric, k=3, backend=backend)
    exact = direct(x.double(), mu.double(), metric)
    value, order = (t[:, :3] for t in exact.sort(dim=1, stable=True))
    assert ((found.distance.double() - value).abs() <= (4 + d) * 2**-24 * value).all()
    # Two distances may be closer than float32 tells apart; then the order is free.
    taken = exact.gather(1, found.index)
    assert ((taken - value).abs() <= (4 + d) * 2**-23 * value).all()
    assert (found.index == order).float().mean() > 0.99
    expanded = x.square().sum(1)[:, None] + mu.square().sum(1) - 2 * x @ mu.T
    assert (expanded.argmin(1) != order[:, 0]).float().mean() > 0.3


@BACKEND
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index(metric, backend):
    for n, k, copies, d in ((50, 4, 5, 19), (9, 1, 40, 3), (7, 13, 9, 16)):
        x = random_tensor((n, d), seed=1)
        mu = random_tensor((k, d), seed=2).repeat(copies, 1)
        take = min(copies, 32)
        found = prototype_assign(x, mu, metric=metric, k=take, backend=backend)
        expected = found.index[:, :1] + k * torch.arange(take)
        assert torch.equal(found.index, expected) and bool((found.index[:, 0] < k).all())
        assert bool((found.distance == found.distance[:, :1]).all())


@BACKEND
def test_what_is_not_a_number(backend):
    x, mu = random_tensor((9, 6), seed=1), random_tensor((5, 6), seed=2)
    x[1] = torch.nan
    mu[2] = torch.nan
    mask = torch.ones(9, 5, dtype=torch.bool)
    mask[4] = False
    mask[5] = torch.arange(5) == 2
    found = prototype_assign(x, mu, mask=mask, k=6, backend=backend)
    distance, index = found.distance, found.index
    assert distance[1].isnan().all() and (index[1] == -1).all()
    assert (distance[4] == torch.inf).all() and (index[4] == -1).all()
    assert distance[5].isnan().all() and (index[5] == -1).all()
    assert (distance[0, 4:] == torch.inf).all() and index[0, 4:].tolist() == [-1, -1]
    assert sorted(index[0, :4].tolist()) == [0, 1, 3, 4]
    if backend != "reference":  # its autograd multiplies by 0
        x.requires_grad_()
        found = prototype_assign(x, mu, mask=mask, k=6, backend=backend)
        (dx,) = torch.autograd.grad(found.distance[[0, 4, 8]].sum(), x)
        assert not dx[[1, 2, 3, 4, 5]].any() and dx[[0, 8]].isfinite().all()


@BACKEND
def test_a_nan_row_is_nan_alone(backend):
    c = call("assign", 130, 21, 19, nearest=3)
    clean = c.run(backend=backend)
    x = c.tensors["x"].clone()
    x[65, 3] = torch.nan
    found = c.change(x=x).run(backend=backend)
    keep = torch.arange(130) != 65
    assert torch.equal(found.distance[keep], clean.distance[keep])
    assert torch.equal(found.index[keep], clean.index[keep])


@KERNEL
@pytest.mark.parametrize("metric", METRICS)
def test_bits_depend_on_neither_threads_nor_batch(metric, backend):
    for size in ((1700, 40, 12), (30, 700, 12)):
        c = call("assign", *size, metric=metric, nearest=2, mask="shared")
        once = with_threads(1, lambda c=c: c.results(backend=backend))
        for threads in (2, 3, 8):
            assert_same_bits(with_threads(threads, lambda c=c: c.results(backend=backend)), once)
        whole = c.run(backend=backend)
        for rows in (slice(0, 1), slice(5, 23), slice(29, 30)):
            alone = c.rows(rows).run(backend=backend)
            assert torch.equal(alone.distance, whole.distance[rows])
            assert torch.equal(alone.index, whole.index[rows])


@BACKEND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, backend):
    c = call("assign", 50, 20, 16, layout=layout, nearest=2, mask="rows")
    flat = c.change(**{n: t.contiguous() for n, t in c.tensors.items()})
    assert_same_bits(c.outputs(backend=backend), flat.outputs(backend=backend))


@BACKEND
def test_no_points_and_no_features(backend):
    for metric in METRICS:
        empty = call("assign", 0, 3, 4, metric=metric, nearest=2).run(backend=backend)
        assert empty.distance.shape == empty.index.shape == (0, 2)
        flat = call("assign", 6, 3, 0, metric=metric, nearest=4).run(backend=backend)
        assert flat.index.tolist() == [[0, 1, 2, -1]] * 6
        value = 1.0 if metric == "cosine" else 0.0
        assert flat.distance.tolist() == [[value] * 3 + [np.inf]] * 6


@KERNEL
def test_nobody_reads_what_nobody_wrote(backend):
    for size in ((50, 20, 10), (3, 140, 5), (1100, 9, 3), (7, 3, 0), (0, 4, 3)):
        for metric in METRICS:
            c = call("assign", *size, metric=metric, nearest=5, mask="rows")
            clean = c.results(backend=backend)
            with poisoned_empty():
                poisoned = c.results(backend=backend)
            assert_same_bits(poisoned, clean, (size, metric))
