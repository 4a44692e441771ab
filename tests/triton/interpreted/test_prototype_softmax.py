"""Softmax over prototypes and its cross-entropy, with gradients, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import compare_primitive, run, same_bits
from tests.triton.interpreted.test_prototype import KINDS, SIZES, masks, points

IGNORED = -100
NONE, SUM, MEAN = range(3)


def settings(metric):
    return metric, (8.0 if metric in (0, 3) else 0.5)


def priors(K):
    prior = torch.randn(K)
    if K > 2:
        prior[2] = -math.inf
    return prior


def backward(x, mu, prior, mask, metric, need=7, silent=0):
    """Of the three results together; ``silent`` leaves upstream gradients out, by bits."""
    forward = compare_primitive("prototype_softmax", (x, mu, prior, mask, *settings(metric), True))
    g = [torch.randn_like(one) for one in forward]
    if len(x) > 3:
        g[0][3], g[1][3] = 0.0, 0.0
    g = [None if silent & (1 << k) else one for k, one in enumerate(g)]
    arguments = (x, mu, prior, mask, forward[1], *g, *settings(metric), need)
    return compare_primitive("prototype_softmax_backward", arguments)


@pytest.mark.parametrize(("metric", "dtype"), KINDS)
def test_softmax(metric, dtype):
    x, mu = points(40, 33, 17, dtype)
    backward(x, mu, priors(33), masks(40, 33)["each"], metric)


@pytest.mark.parametrize("silent", [1, 6, 5, 7])
def test_upstream_gradients_that_are_not_there(silent):
    x, mu = points(40, 33, 17)
    dx, *_ = backward(x, mu, None, masks(40, 33)["shared"], 0, silent=silent)
    assert bool((dx == 0).all()) == (silent == 7)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    x, mu = points(*size)
    backward(x, mu, None, None, 1)
    target = torch.randint(0, size[1], (size[0],))
    compare_primitive("prototype_cross_entropy", cross_entropy(x, mu, target, 1))


def test_without_probabilities(monkeypatch):
    """The same bits, also where the pairs do not fit one stripe."""
    x, mu = points(130, 3, 4)
    _, lse, _ = run("prototype_softmax", (x, mu, None, None, 0, 2.0, True))
    monkeypatch.setattr("fedkernels.prototype.triton.gradient.WEIGHT_CELLS", 64 * 3)
    prob, *found = run("prototype_softmax", (x, mu, None, None, 0, 2.0, False))
    assert prob.shape == (0,)
    assert same_bits(found[0], lse)
    compare_primitive("prototype_softmax", (x, mu, None, None, 0, 2.0, False))
    backward(x, mu, torch.randn(3), None, 0)


def test_need():
    x, mu = points(20, 17, 5)
    for need in (1, 2, 4):
        found = backward(x, mu, torch.zeros(17), None, 2, need=need)
        assert [bool(g.numel()) for g in found] == [bool(need & (1 << k)) for k in range(3)]


@pytest.mark.parametrize("metric", [1, 2])
def test_nan_stays_in_its_row(metric):
    x, mu = points(6, 5, 3)
    bad = x.clone()
    bad[1, 0] = math.nan
    call = (mu, None, None, *settings(metric), True)
    clean, found = run("prototype_softmax", (x, *call)), run("prototype_softmax", (bad, *call))
    kept = torch.arange(6) != 1
    assert all(same_bits(a[kept], b[kept]) for a, b in zip(clean[:2], found[:2], strict=True))
    assert found[0][1].isnan().all() and found[1][1].isnan() and found[2].isnan().all()
    # Without a gradient for that row, no bit of the gradients knows of it.
    g_lse = torch.randn(6)
    g_lse[1] = 0.0
    end = (None, g_lse, None, *settings(metric), 7)
    a = run("prototype_softmax_backward", (x, mu, None, None, clean[1], *end))
    b = run("prototype_softmax_backward", (bad, mu, None, None, found[1], *end))
    assert all(same_bits(one, other) for one, other in zip(a, b, strict=True))


def test_a_masked_prototype_may_be_anything():
    x, mu = points(6, 5, 3)
    mask = torch.tensor([[True, True, False, True, True]])
    target = torch.tensor([0, 1, 3, 4, 0, 1])
    end = (mask, None, None, 0, 2.0, IGNORED, MEAN, 7)
    clean = run("prototype_cross_entropy", (x, mu, target, None, *end))
    mu[2] = math.nan
    # The centre is of finite prototypes alone: the same to rounding.
    found = run("prototype_cross_entropy", (x, mu, target, None, *end))
    assert all(one.isfinite().all() for one in found)
    assert torch.allclose(found[0], clean[0]) and torch.allclose(found[1], clean[1], atol=1e-6)


def cross_entropy(x, mu, target, metric, *, prior=None, mask=None, weight=None, rows=None, **more):
    """Arguments of prototype_cross_entropy, in order."""
    numbers = {"ignore": IGNORED, "reduction": MEAN, "need": 7 if prior is not None else 3} | more
    return x, mu, target, prior, mask, weight, rows, *settings(metric), *numbers.values()


def labels(n, K):
    target = torch.randint(0, K, (n,))
    target[1] = IGNORED
    return target


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("metric", "dtype"), KINDS)
def test_cross_entropy(metric, dtype, soft):
    x, mu = points(40, 33, 17, dtype)
    target = torch.rand(40, 33).softmax(1) if soft else labels(40, 33)
    arguments = cross_entropy(x, mu, target, metric, prior=torch.randn(33), weight=torch.rand(33))
    compare_primitive("prototype_cross_entropy", arguments)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", [NONE, SUM, MEAN])
def test_reductions_masks_and_row_weights(reduction, soft):
    x, mu = points(40, 33, 5)
    mask = masks(40, 33)["each"]
    target = torch.rand(40, 33) if soft else labels(40, 33)
    if soft:
        target = torch.where(mask, target, 0.0)
    else:
        mask[torch.arange(40), target.clamp(min=0)] = True
        mask[5] = False
    for need in (0, 7):
        arguments = cross_entropy(
            x, mu, target, 0, prior=torch.zeros(33), mask=mask, rows=torch.randn(40),
            reduction=reduction, need=need,
        )  # fmt: skip
        compare_primitive("prototype_cross_entropy", arguments)


def test_labels_out_of_range_and_masked_ones():
    x, mu = points(70, 5, 3)
    target = torch.randint(0, 4, (70,))
    target[[66, 68]] = torch.tensor([5, -1])
    target[3] = 4
    mask = torch.tensor([[True, True, True, True, False]])
    arguments = cross_entropy(x, mu, target, 0, mask=mask, reduction=NONE, need=0)
    loss, *_, bad = compare_primitive("prototype_cross_entropy", arguments)
    assert bad.item() == 66 and loss[[66, 68]].isnan().all() and loss[3] == math.inf
    loss, *_ = run("prototype_cross_entropy", cross_entropy(x, mu, target, 0, mask=mask))
    assert loss.isnan()


def test_everything_ignored():
    x, mu = points(3, 5, 3)
    target = torch.full((3,), IGNORED)
    loss, dx, dmu, *_ = run("prototype_cross_entropy", cross_entropy(x, mu, target, 0))
    assert loss.isnan() and (dx == 0).all() and (dmu == 0).all()
    loss, *_ = run("prototype_cross_entropy", cross_entropy(x, mu, target, 0, reduction=SUM))
    assert loss == 0.0


def test_a_confident_row_keeps_its_digits():
    """The loss of a right answer far above the others is log1p of little, not a difference."""
    mu = torch.tensor([[0.0], [1.0]])
    x = torch.tensor([[-3.0]])
    arguments = (x, mu, torch.tensor([0]), None, None, None, None, 0, 0.5, IGNORED, NONE, 0)
    loss, *_ = run("prototype_cross_entropy", arguments)
    assert abs(loss.item() / math.log1p(math.exp(-14.0)) - 1) < 1e-2  # of 1 + 8e-7 in float32


def test_cross_entropy_in_stripes(monkeypatch):
    monkeypatch.setattr("fedkernels.prototype.triton.gradient.WEIGHT_CELLS", 64 * 3)
    x, mu = points(130, 3, 4)
    arguments = cross_entropy(x, mu, labels(130, 3), 2, prior=torch.randn(3))
    compare_primitive("prototype_cross_entropy", arguments)
