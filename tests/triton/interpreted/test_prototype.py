"""Distances to prototypes and the nearest of them, forward and backward, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import compare_primitive, run, same_bits

METRICS = range(4)
SQEUCLIDEAN, EUCLIDEAN, COSINE, DOT = METRICS
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Every metric, and halves where the centre is rounded to them and where points are normalised.
KINDS = [(metric, torch.float32) for metric in METRICS]
KINDS += [(metric, dtype) for metric in (0, 2) for dtype in FLOATS[1:]]
# Rows, prototypes, features: one tile and a bit, one less, nothing, one.
SIZES = [(65, 15, 33), (3, 66, 1), (1, 1, 1), (0, 3, 4), (2, 1, 0)]


def points(n, K, D, dtype=torch.float32):
    """Rows and prototypes away from 0; some of them are the same, some are 0."""
    x, mu = (torch.randn(n, D) + 1).to(dtype), torch.randn(K, D) + 1
    if n > 4 and K > 4:
        mu[1] = mu[3] = x[2].float()
        x[4], mu[4] = 0.0, 0.0
    return x, mu


def both_ways(x, mu, metric, need=3):
    (distance,) = compare_primitive("prototype_distance", (x, mu, metric))
    grad = torch.randn(len(x), len(mu))
    grad[:1] = 0.0
    # The reference's distances: a gradient is compared for the same ones.
    arguments = (x, mu, distance, grad, metric, need)
    return distance, compare_primitive("prototype_distance_backward", arguments)


@pytest.mark.parametrize(("metric", "dtype"), KINDS)
def test_distances(metric, dtype):
    x, mu = points(40, 33, 17, dtype)
    distance, _ = both_ways(x, mu, metric)
    if metric != DOT:
        assert distance[2, 1] == distance[2, 3] == 0.0
    if metric == COSINE:
        assert (distance[4] == 1.0).all() and (distance[:, 4] == 1.0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("metric", [EUCLIDEAN, COSINE])
def test_sizes(metric, size):
    x, mu = points(*size)
    both_ways(x, mu, metric)
    if metric == EUCLIDEAN or x.shape[1] != 1:  # cosines of one feature are 1 or -1, but rounded
        compare_primitive("prototype_assign", (x, mu, None, metric, 2))


def test_what_is_not_needed_is_empty():
    x, mu = points(3, 2, 4)
    assert [g.numel() for g in both_ways(x, mu, 0, need=1)[1]] == [12, 0]
    assert [g.numel() for g in both_ways(x, mu, 0, need=2)[1]] == [0, 8]


def test_a_row_without_gradient_takes_no_part():
    x, mu = points(5, 3, 4)
    grad = torch.randn(5, 3)
    grad[1] = 0.0
    for metric in METRICS:
        distance = run("prototype_distance", (x, mu, metric))[0]
        clean = run("prototype_distance_backward", (x, mu, distance, grad, metric, 3))
        bad = x.clone()
        bad[1, 2] = math.nan
        distance[1] = math.nan
        found = run("prototype_distance_backward", (bad, mu, distance, grad, metric, 3))
        assert all(same_bits(a, b) for a, b in zip(clean, found, strict=True))


def test_stripes_of_rows_and_splits_add_up(monkeypatch):
    x, mu = points(130, 3, 4)
    for metric in (SQEUCLIDEAN, COSINE):
        (distance,) = run("prototype_distance", (x, mu, metric))
        arguments = (x, mu, distance, torch.randn(130, 3), metric, 3)
        whole = run("prototype_distance_backward", arguments)
        with monkeypatch.context() as patch:
            patch.setattr("fedkernels.prototype.triton.gradient.WEIGHT_CELLS", 64 * 3)
            patch.setattr("fedkernels.prototype.triton.gradient.PROGRAMS", 2)
            striped = compare_primitive("prototype_distance_backward", arguments)
        assert same_bits(striped[0], whole[0])


@pytest.mark.parametrize("metric", [SQEUCLIDEAN, EUCLIDEAN])
def test_two_clusters_far_apart(metric):
    """At +-1e4 with spread 1 the expansion's rounding is as large as the distances themselves."""
    centres = torch.tensor([-1e4, 1e4])
    mu = centres.repeat_interleave(4)[:, None] + torch.randn(8, 6)
    x = centres.repeat_interleave(5)[:, None] + torch.randn(10, 6)
    exact = torch.cdist(x.double(), mu.double())
    exact = exact.square() if metric == SQEUCLIDEAN else exact
    value, index = run("prototype_assign", (x, mu, None, metric, 2))
    best = exact.topk(2, dim=1, largest=False)
    assert torch.equal(index, best.indices)
    # Direct differences: each square errs by its rounding and its sum's.
    assert torch.allclose(value.double(), best.values, rtol=8 * 2.0**-23, atol=0.0)
    (distance,) = run("prototype_distance", (x, mu, metric))
    close = exact < 1e3
    assert torch.allclose(distance.double()[close], exact[close], rtol=8 * 2.0**-23, atol=0.0)


def test_squares_that_overflow():
    """The expansion is inf - inf where the difference is small: direct differences resolve it."""
    mu = torch.tensor([[2e19, 0.0], [2e19, 1.0], [-2e19, 0.0]])
    x = torch.tensor([[2e19, 3.0]])
    (distance,) = run("prototype_distance", (x, mu, SQEUCLIDEAN))
    assert distance.tolist() == [[9.0, 4.0, math.inf]]


def masks(n, K):
    mask = torch.rand(n, K) < 0.6
    mask[1] = False
    mask[2] = True
    return {"none": None, "shared": mask[:1].clone(), "each": mask}


@pytest.mark.parametrize("k", [1, 32])
@pytest.mark.parametrize("metric", METRICS)
def test_assign(metric, k):
    x, mu = points(7, 9, 5)
    for mask in masks(7, 9).values():
        value, index = compare_primitive("prototype_assign", (x, mu, mask, metric, k))
        if mask is None and metric != DOT:
            assert index[2, 0] == 1 and value[2, 0] == 0.0
        if mask is not None and len(mask) > 1:
            assert (index[1] == -1).all() and (value[1] == math.inf).all()


@pytest.mark.parametrize("metric", [SQEUCLIDEAN, DOT])
def test_ties_go_to_the_lowest_index(metric):
    """Also where the same prototype stands in two blocks."""
    x = torch.randn(3, 3)
    mu = torch.randn(23, 3)[torch.arange(69) % 23]
    value, index = run("prototype_assign", (x, mu, None, metric, 4))
    assert (index[:, :3] == index[:, :1] + 23 * torch.arange(3)).all()
    assert (value[:, :3] == value[:, :1]).all() and (index[:, 3] < 23).all()


@pytest.mark.parametrize("metric", METRICS)
def test_assign_of_what_is_not_finite(metric):
    x, mu = torch.randn(5, 3), torch.randn(6, 3)
    x[1, 0] = math.nan
    mu[2], mu[4] = math.nan, math.inf
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[3] = torch.tensor([0, 0, 1, 0, 0, 0])
    value, index = run("prototype_assign", (x, mu, mask, metric, 4))
    good = torch.tensor([0, 1, 3, 5])
    clean = run("prototype_assign", (x, mu[good], None, metric, 4))
    for row in (0, 2, 4):
        assert torch.equal(index[row], good[clean[1][row]])
    for row in (1, 3):
        assert value[row].isnan().all() and (index[row] == -1).all()


@pytest.mark.parametrize("metric", [EUCLIDEAN, DOT])
def test_a_row_alone_and_beside_a_nan_has_the_same_bits(metric):
    x, mu = points(70, 66, 5)
    bad = x.clone()
    bad[3] = math.nan
    for name, more in (("prototype_distance", ()), ("prototype_assign", (None,))):
        end = (metric, 2) if more else (metric,)
        together = run(name, (bad, mu, *more, *end))
        clean = run(name, (x, mu, *more, *end))
        alone = run(name, (x[65:66], mu, *more, *end))
        for a, b, c in zip(together, clean, alone, strict=True):
            kept = torch.arange(70) != 3
            assert same_bits(a[kept], b[kept]) and same_bits(b[65:66], c)
        assert together[0][3].isnan().all()
