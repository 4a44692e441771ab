"""The specification against dense numpy, cdist, F.cross_entropy and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedkernels.prototype import reference
from fedkernels.testing import long_double, random_tensor
from tests.ops.prototype import dense

pytestmark = pytest.mark.once
METRICS = dense.METRICS
N, K, D = 9, 5, 6
TEMPERATURE = 0.7


def points(dtype=torch.float64, seed=0, n=N, k=K, d=D):
    x = random_tensor((n, d), dtype=dtype, seed=seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x, random_tensor((k, d), dtype=wide, seed=seed + 1)


def mask_of(kind):
    if kind == "none":
        return None
    mask = torch.rand((N if kind == "rows" else 1, K), generator=torch.Generator().manual_seed(3))
    mask = mask > 0.3
    if kind == "rows":
        mask[4] = False
    return mask


def numpy(tensor):
    return None if tensor is None else long_double(tensor)


def close(actual, expected, tight=1e-12):
    expected = torch.from_numpy(np.asarray(expected, dtype=np.float64).copy())
    torch.testing.assert_close(actual.double(), expected, rtol=tight, atol=tight)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_direct_differences(metric):
    x, mu = points()
    found = reference.prototype_distance(x, mu, METRICS.index(metric))
    close(found, dense.distances(numpy(x), numpy(mu), metric))
    if metric in ("sqeuclidean", "euclidean"):
        exact = torch.cdist(x, mu, compute_mode="donot_use_mm_for_euclid_dist")
        exact = exact.square() if metric == "sqeuclidean" else exact
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    if metric == "cosine":
        cos = F.cosine_similarity(x[:, None], mu[None], dim=-1)
        torch.testing.assert_close(found, 1 - cos, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_a_large_offset_costs_what_the_input_has_lost(offset):
    """Spread 1 around an offset: the exact distances of the rounded points, to 64 roundings."""
    x, mu = points(n=40, d=32)
    x, mu = ((t + offset).float() for t in (x, mu))
    exact = torch.cdist(x.double(), mu.double()).square()
    found = reference.prototype_distance(x, mu, 0)
    # |x'|^2 + |mu'|^2 is about 2 D here, as the distance is; the centre's own rounding is exact.
    assert (found.double() - exact).abs().max() <= 64 * 2**-24 * exact.max()


@pytest.mark.parametrize("dense_limit", [0, 1 << 30])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_two_clusters_far_apart(metric, dense_limit, monkeypatch):
    """At +-1e4 with spread 1 the expansion alone is noise of 10; pairs of one cluster are close."""
    monkeypatch.setattr("fedkernels.prototype.reference.distance._DENSE", dense_limit)
    x, mu = points(n=60, k=8, d=16)
    signs = torch.tensor([1e4, -1e4])
    x = (x + signs.repeat(30)[:, None]).float()
    mu = (mu + signs.repeat(4)[:, None]).float()
    found = reference.prototype_distance(x, mu, METRICS.index(metric)).double()
    exact = torch.cdist(x.double(), mu.double())
    exact = exact.square() if metric == "sqeuclidean" else exact
    assert int((exact < 1e4).sum()) >= 60 * 4
    # Within a cluster the sum of D squares; across, an expansion in which nothing cancels.
    assert ((found - exact).abs() <= 16 * 2**-24 * exact).all()
    expanded = x.square().sum(1)[:, None] + mu.square().sum(1) - 2 * x @ mu.T
    assert (expanded.double() - torch.cdist(x.double(), mu.double()).square()).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_equal_points_are_exactly_0_and_have_gradients(metric, dtype):
    x, _ = points(dtype, n=40, d=33)
    x = x * torch.logspace(-3, 3, 40).to(dtype)[:, None] + 100
    mu = x[:7].to(torch.float64 if dtype == torch.float64 else torch.float32)
    a, b = x.clone().requires_grad_(), mu.clone().requires_grad_()
    found = reference.prototype_distance(a, b, METRICS.index(metric))
    assert bool((found.diagonal() == 0).all()) and bool((found >= 0).all())
    for gradient in torch.autograd.grad(found.sum(), (a, b)):
        assert bool(gradient.isfinite().all())
    if metric != "cosine":
        some = torch.eye(len(mu), dtype=found.dtype)
        found = reference.prototype_distance(a[:7], b, METRICS.index(metric))
        for gradient in torch.autograd.grad((found * some).sum(), (a, b)):
            assert not gradient.any()


@pytest.mark.parametrize("metric", METRICS)
def test_finite_input_is_never_nan(metric):
    for size in (1e-30, 1e-19, 1e19, 3e19, 1e30):
        x, mu = points(torch.float32)
        x, mu = x.abs() * size, torch.cat([mu.abs() * size, x[:1].abs() * size])
        found = reference.prototype_distance(x, mu, METRICS.index(metric))
        assert not found.isnan().any(), size
        if metric in ("sqeuclidean", "euclidean"):
            assert found[0, -1] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_written_backward_is_autograds_and_the_chain_rules(metric):
    x, mu = points()
    mu[2] = x[3]
    number = METRICS.index(metric)
    x.requires_grad_()
    mu.requires_grad_()
    distance = reference.prototype_distance(x, mu, number)
    grad = random_tensor((N, K), dtype=torch.float64, seed=7)
    expected = torch.autograd.grad(distance, (x, mu), grad)
    with torch.no_grad():
        written = reference.prototype_distance_backward(x, mu, distance, grad, number, 3)
    exact = dense.pull(*(numpy(t.detach()) for t in (x, mu)), metric, numpy(grad))
    for a, b, c in zip(written, expected, (exact["dx"], exact["dmu"]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        close(a, c)
    for need in range(4):
        some = reference.prototype_distance_backward(x, mu, distance, grad, number, need)
        for bit, (t, whole) in enumerate(zip(some, written, strict=True)):
            assert torch.equal(t, whole) if need >> bit & 1 else t.numel() == 0


@pytest.mark.parametrize("metric", METRICS)
def test_second_derivatives_exist(metric):
    x, mu = points(n=4, k=3, d=3)
    number = METRICS.index(metric)
    assert torch.autograd.gradgradcheck(
        lambda a, b: reference.prototype_distance(a, b, number),
        (x.requires_grad_(), mu.requires_grad_()),
    )


@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_softmax_is_the_dense_one(metric, prior, mask):
    x, mu = points()
    mask = mask_of(mask)
    log_prior = random_tensor((K,), dtype=torch.float64, seed=5) if prior else None
    leaves = [t.requires_grad_() for t in (x, mu, log_prior) if t is not None]
    arguments = (x, mu, log_prior, mask, METRICS.index(metric), TEMPERATURE)
    results = reference.prototype_softmax(*arguments, True)
    upstream = [random_tensor(t.shape, dtype=t.dtype, seed=i) for i, t in enumerate(results)]
    raw = [numpy(t.detach()) for t in leaves]
    distance = dense.distances(raw[0], raw[1], metric)
    logit = dense.logits(
        distance, TEMPERATURE, raw[2] if prior else None, None if mask is None else mask.numpy()
    )
    prob, lse = dense.softmax(logit)
    for a, b in zip(results, (prob, lse, prob.sum(0)), strict=True):
        close(a.detach(), b)
    pull = dense.pull_softmax(prob, *(numpy(g) for g in upstream))
    exact = dense.pull(raw[0], raw[1], metric, -pull / TEMPERATURE)
    expected = [exact["dx"], exact["dmu"], pull.sum(0)]
    finite = torch.where(results[1] == -torch.inf, 0.0, results[1])
    total = sum(
        (r * g).sum() for r, g in zip((results[0], finite, results[2]), upstream, strict=True)
    )
    by_autograd = torch.autograd.grad(total, leaves)
    with torch.no_grad():
        written = reference.prototype_softmax_backward(
            *arguments[:4], results[1], *upstream, *arguments[4:], 7 if prior else 3
        )
    assert written[2].numel() == (K if prior else 0)
    for i, found in enumerate(by_autograd):
        close(found, expected[i])
        close(written[i], expected[i])


def test_softmax_without_what_is_not_asked_for():
    x, mu = points()
    prob, lse, mass = reference.prototype_softmax(x, mu, None, None, 0, 1.0, False)
    whole = reference.prototype_softmax(x, mu, None, None, 0, 1.0, True)
    assert prob.shape == (0,) and torch.equal(lse, whole[1]) and torch.equal(mass, whole[2])
    upstream = [random_tensor(t.shape, dtype=t.dtype, seed=i) for i, t in enumerate(whole)]
    parts = [
        reference.prototype_softmax_backward(
            x, mu, None, None, lse, *(g if i == j else None for j, g in enumerate(upstream)),
            0, 1.0, 3,
        )
        for i in range(3)
    ]  # fmt: skip
    together = reference.prototype_softmax_backward(x, mu, None, None, lse, *upstream, 0, 1.0, 3)
    for i in (0, 1):
        torch.testing.assert_close(sum(p[i] for p in parts), together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_torchs_on_the_same_logits(soft, weighted, reduction):
    x, mu = points(n=30)
    logit = -torch.cdist(x, mu).square() / TEMPERATURE
    target = torch.arange(30) % K
    target[::7] = -100
    if soft:
        target = random_tensor((30, K), dtype=torch.float64, seed=5).softmax(1)
    weight = random_tensor((K,), dtype=torch.float64, seed=6).abs() if weighted else None
    expected = F.cross_entropy(logit, target, weight=weight, reduction=reduction)
    if soft and weighted and reduction == "mean":
        # PyTorch divides by the number of rows here; this family by the weights in both cases.
        expected = expected * 30 / (target * weight).sum()
    found = reference.prototype_cross_entropy(
        x, mu, target, None, None, weight, None, 0, TEMPERATURE, -100,
        ("none", "sum", "mean").index(reduction), 0,
    )  # fmt: skip
    torch.testing.assert_close(found[0], expected, rtol=1e-11, atol=1e-11)
    assert found[4] == -1 and all(t.numel() == 0 for t in found[1:4])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_cross_entropy_and_its_gradients(metric, soft, mask, reduction):
    x, mu = points()
    mask = mask_of(mask)
    target = torch.arange(N) % K
    target[5] = 7  # ignored
    if mask is not None:  # hits nothing that is masked
        target = torch.where(mask.expand(N, K).any(1), mask.expand(N, K).int().argmax(1), target)
        target[5] = 7
    if soft:
        target = random_tensor((N, K), dtype=torch.float64, seed=5).softmax(1)
        target = target if mask is None else torch.where(mask, target, 0.0)
    log_prior = random_tensor((K,), dtype=torch.float64, seed=5)
    class_weight = random_tensor((K,), dtype=torch.float64, seed=6).abs()
    row_weight = random_tensor((N,), dtype=torch.float64, seed=8)
    number = ("none", "sum", "mean").index(reduction)
    leaves = [t.requires_grad_() for t in (x, mu, log_prior)]

    def run(rows, need):
        return reference.prototype_cross_entropy(
            x, mu, target, log_prior, mask, class_weight, rows, METRICS.index(metric),
            TEMPERATURE, 7, number, need,
        )  # fmt: skip

    raw = [numpy(t.detach()) for t in leaves]
    logit = dense.logits(
        dense.distances(raw[0], raw[1], metric), TEMPERATURE, raw[2],
        None if mask is None else mask.numpy(),
    )  # fmt: skip
    weight = dense.weights(numpy(target) if soft else target.numpy(), K, numpy(class_weight), 7)
    for rows in (None, row_weight):
        loss, pull = dense.cross_entropy(
            logit, weight, reduction, None if rows is None else numpy(rows)
        )
        exact = dense.pull(raw[0], raw[1], metric, -pull / TEMPERATURE)
        expected = [exact["dx"], exact["dmu"], pull.sum(0)]
        found = run(rows, 7)
        assert not any(t.requires_grad for t in found[1:4])
        close(found[0].detach(), loss)
        for a, b in zip(found[1:4], expected, strict=True):
            close(a, b)
        if rows is None or reduction == "none":
            upstream = torch.ones_like(found[0]) if rows is None else rows
            for a, b in zip(torch.autograd.grad(found[0], leaves, upstream), expected, strict=True):
                close(a, b)


def test_labels_out_of_range():
    x, mu = points()
    target = torch.arange(N) % K
    target[[3, 6]] = torch.tensor([K, -1])
    run = reference.prototype_cross_entropy
    for reduction in range(3):
        loss, dx, _, _, bad = run(x, mu, target, None, None, None, None, 0, 1.0, -100, reduction, 3)
        assert bad == 3 and bad.dtype == torch.int64
        where = loss.isnan().nonzero().flatten().tolist()
        assert where == [3, 6] if reduction == 0 else loss.isnan()
        assert dx.isfinite().all() and not dx[[3, 6]].any()


def test_a_masked_label_costs_infinity():
    x, mu = points()
    mask = torch.ones(1, K, dtype=torch.bool)
    mask[0, 2] = False
    target = torch.full((N,), 2)
    target[0] = 1
    x.requires_grad_()
    found = reference.prototype_cross_entropy(
        x, mu, target, None, mask, None, None, 0, 1.0, -100, 1, 1
    )
    assert found[0] == torch.inf
    assert found[1].isfinite().all()
    (by_autograd,) = torch.autograd.grad(found[0], x)
    torch.testing.assert_close(by_autograd, found[1])


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_what_takes_no_part_may_hold_anything(reduction):
    x, mu = points()
    mask = torch.ones(N, K, dtype=torch.bool)
    mask[5] = False
    target = torch.arange(N) % K
    target[2] = -100
    clean = x.clone()
    x[[2, 5]] = torch.nan
    found, expected = (
        reference.prototype_cross_entropy(
            t, mu, target, None, mask, None, None, 1, 1.0, -100, reduction, 3
        )
        for t in (x, clean)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[1][[2, 5]].any()
    x.requires_grad_()
    mu.requires_grad_()
    loss = reference.prototype_cross_entropy(
        x, mu, target, None, mask, None, None, 1, 1.0, -100, reduction, 0
    )[0]
    for a, b in zip(torch.autograd.grad(loss.sum(), (x, mu)), found[1:3], strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_to_average_is_nan_without_gradient():
    x, mu = points()
    target = torch.full((N,), -100)
    found = reference.prototype_cross_entropy(
        x, mu, target, None, None, None, None, 0, 1.0, -100, 2, 3
    )
    assert found[0].isnan() and not found[1].any() and not found[2].any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, K + 2])
@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
def test_assign_is_the_sorted_row(mask, k, metric):
    x, mu = points(n=N)
    mask = mask_of(mask)
    distance, index = reference.prototype_assign(x, mu, mask, METRICS.index(metric), k)
    exact = dense.distances(numpy(x), numpy(mu), metric)
    if mask is not None:
        exact = np.where(mask.numpy(), exact, np.inf)
    order = np.argsort(exact, 1, kind="stable")[:, :k]
    value = np.take_along_axis(exact, order, 1)
    missing = max(k - K, 0)
    value = np.pad(value, ((0, 0), (0, missing)), constant_values=np.inf)
    order = np.where(np.isinf(value), -1, np.pad(order, ((0, 0), (0, missing))))
    assert distance.shape == index.shape == (N, k)
    assert index.numpy().tolist() == order.tolist()
    close(distance, value)


def test_assign_in_two_clusters_far_apart():
    """By the expansion alone most rows would name a wrong nearest."""
    x, mu = points(n=400, k=16, d=64)
    signs = torch.tensor([1e4, -1e4])
    x, mu = (x + signs.repeat(200)[:, None]).float(), (mu + signs.repeat(8)[:, None]).float()
    direct = (x[:, None] - mu).square().sum(2)
    for metric in (0, 1):
        distance, index = reference.prototype_assign(x, mu, None, metric, 3)
        expected, order = (t[:, :3] for t in direct.sort(dim=1, stable=True))
        assert torch.equal(index, order)
        torch.testing.assert_close(distance, expected.sqrt() if metric else expected)
    expanded = x.square().sum(1)[:, None] + mu.square().sum(1) - 2 * x @ mu.T
    assert (expanded.argmin(1) != direct.argmin(1)).float().mean() > 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_assign_ties_go_to_the_lowest_index(metric):
    x, mu = points(torch.float32, n=50, k=4, d=19)
    mu = mu.repeat(5, 1)
    distance, index = reference.prototype_assign(x, mu, None, METRICS.index(metric), 8)
    assert bool((index[:, :5] == index[:, :1] + 4 * torch.arange(5)).all())
    assert bool((distance[:, :5] == distance[:, :1]).all()) and bool((index[:, 0] < 4).all())


def test_assign_what_is_not_a_number():
    x, mu = points()
    x[1] = torch.nan
    mu[2] = torch.nan
    mask = torch.ones(N, K, dtype=torch.bool)
    mask[4] = False
    mask[5] = torch.arange(K) == 2
    distance, index = reference.prototype_assign(x, mu, mask, 0, K + 1)
    assert distance[1].isnan().all() and (index[1] == -1).all()
    assert (distance[4] == torch.inf).all() and (index[4] == -1).all()
    assert distance[5].isnan().all() and (index[5] == -1).all()
    assert (distance[0, -2:] == torch.inf).all() and index[0].tolist()[-2:] == [-1, -1]
    assert sorted(index[0].tolist()[:-2]) == [0, 1, 3, 4]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [(0, 3, 4), (3, 1, 4), (3, 2, 0), (1, 1, 1)])
def test_small_and_empty(size, metric):
    n, k, d = size
    number = METRICS.index(metric)
    x, mu = points(n=n, k=k, d=d)
    found = reference.prototype_distance(x, mu, number)
    assert found.shape == (n, k)
    if d == 0:
        assert bool((found == (1.0 if metric == "cosine" else 0.0)).all())
    grads = reference.prototype_distance_backward(x, mu, found, found, number, 3)
    assert [t.shape for t in grads] == [x.shape, mu.shape]
    prob, lse, mass = reference.prototype_softmax(x, mu, None, None, number, 1.0, True)
    assert prob.shape == (n, k) and lse.shape == (n,) and mass.shape == (k,)
    distance, index = reference.prototype_assign(x, mu, None, number, 2)
    assert distance.shape == index.shape == (n, 2)
    loss = reference.prototype_cross_entropy(
        x, mu, torch.zeros(n, dtype=torch.int64), None, None, None, None, number, 1.0, -100, 1, 3
    )
    assert loss[0].shape == () and loss[4] == -1


def test_a_nan_row_is_nan_alone():
    x, mu = points(torch.float32, n=30)
    clean = reference.prototype_softmax(x, mu, None, None, 0, 1.0, True)
    x[7] = torch.nan
    prob, lse, mass = reference.prototype_softmax(x, mu, None, None, 0, 1.0, True)
    keep = torch.arange(30) != 7
    assert torch.equal(prob[keep], clean[0][keep]) and torch.equal(lse[keep], clean[1][keep])
    assert prob[7].isnan().all() and lse[7].isnan() and mass.isnan().all()
