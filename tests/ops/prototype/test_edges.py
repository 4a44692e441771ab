"""What rounding, overflow, masks and labels do at their edges, the same on every backend."""

from __future__ import annotations

import pytest
import torch

from fedkernels import (
    prototype_assign,
    prototype_cross_entropy,
    prototype_distance,
    prototype_softmax,
)
from fedkernels.prototype import ops, reference
from fedkernels.testing import random_tensor
from tests.ops.kit import needs_extension
from tests.ops.prototype.kit import METRICS, backends, call

DISTANCE, SOFTMAX, LOSS = (
    pytest.mark.parametrize("backend", backends(*names))
    for names in (("distance",), ("softmax",), ("cross_entropy",))
)


def clusters(n=60, k=8, d=16, distance=1e4):
    """Two clusters of deviation 1, in float32."""
    signs = torch.tensor([distance, -distance])
    x = random_tensor((n, d), seed=1) + signs.repeat(n // 2)[:, None]
    return x, random_tensor((k, d), seed=2) + signs.repeat(k // 2)[:, None]


@DISTANCE
@pytest.mark.parametrize("metric", METRICS[:2])
def test_two_clusters_far_apart(metric, backend):
    for d in (3, 16, 130):
        x, mu = clusters(d=d)
        x[7] = mu[1]
        found = prototype_distance(x, mu, metric=metric, backend=backend).double()
        exact = torch.cdist(x.double(), mu.double(), compute_mode="donot_use_mm_for_euclid_dist")
        exact = exact.square() if metric == "sqeuclidean" else exact
        # Within a cluster a sum of D squares in some order; across, nothing cancels.
        assert ((found - exact).abs() <= (8 + d) * 2**-24 * exact).all()
        assert found[7, 1] == 0


@DISTANCE
@pytest.mark.parametrize("metric", METRICS[:2])
def test_a_large_offset_costs_what_the_input_has_lost(metric, backend):
    """Spread 1 around 1e4: the distances of the rounded points, to what 2 D squares round."""
    x, mu = (random_tensor((n, 32), seed=n) + 1e4 for n in (70, 9))
    exact = torch.cdist(x.double(), mu.double(), compute_mode="donot_use_mm_for_euclid_dist")
    exact = exact.square() if metric == "sqeuclidean" else exact
    found = prototype_distance(x, mu, metric=metric, backend=backend).double()
    assert (found - exact).abs().max() <= 16 * 2**-24 * exact.max()


@DISTANCE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("metric", METRICS[:3])
def test_equal_points_have_exactly_0_and_a_gradient(metric, dtype, backend):
    x = random_tensor((40, 33), seed=1) * torch.logspace(-3, 2, 40)[:, None] + 10
    x = x.to(dtype)
    mu = x[::3].to(torch.float64 if dtype == torch.float64 else torch.float32)
    a, b = x.requires_grad_(), mu.requires_grad_()
    found = prototype_distance(a, b, metric=metric, backend=backend)
    assert bool((found[::3].diagonal() == 0).all()) and bool((found >= 0).all())
    for gradient in torch.autograd.grad(found.sum(), (a, b)):
        assert bool(gradient.isfinite().all())
    if metric == "euclidean":
        found = prototype_distance(a[::3], b, metric=metric, backend=backend).diagonal()
        assert not any(g.any() for g in torch.autograd.grad(found.sum(), (a, b)))


@DISTANCE
@pytest.mark.parametrize("metric", METRICS)
def test_finite_input_is_never_nan(metric, backend):
    # Squares that leave float32's range: the specification resolves them, a kernel need not.
    for size in (1e-30, 1e-19, 1e18, *((1e19, 3e19, 1e30) if backend == "reference" else ())):
        x, mu = (random_tensor((n, 6), seed=n).abs() * size for n in (9, 5))
        mu[-1] = x[0]
        found = prototype_distance(x, mu, metric=metric, backend=backend)
        assert not found.isnan().any(), size
        if metric in METRICS[:2]:
            assert found[0, -1] == 0


@DISTANCE
def test_a_zero_vector_has_distance_1_and_no_gradient(backend):
    x, mu = random_tensor((7, 5), seed=1), random_tensor((4, 5), seed=2)
    x[3], mu[2] = 0, 1e-25
    found = prototype_distance(
        x.requires_grad_(), mu.requires_grad_(), metric="cosine", backend=backend
    )
    assert (found[3] == 1).all() and (found[:, 2] == 1).all()
    dx, dmu = torch.autograd.grad(found.sum(), (x, mu))
    assert not dx[3].any() and not dmu[2].any() and dx[2].any()


@DISTANCE
def test_the_centre_leaves_out_what_is_not_finite(backend):
    x, mu = clusters(distance=1e3)
    mu[-1, 2] = torch.inf
    found = prototype_distance(x, mu, backend=backend)[:, :-1].double()
    exact = torch.cdist(x.double(), mu[:-1].double()).square()
    assert ((found - exact).abs() <= 64 * 2**-24 * exact).all()


@SOFTMAX
def test_rows_with_nothing(backend):
    c = call("softmax", 9, 5, 4, mask="rows")
    c.tensors["mask"][4] = False
    c.tensors["x"][4] = torch.nan
    c = c.train()
    found = c.outputs(backend=backend)
    assert found["lse"][4] == -torch.inf and not found["prob"][4].any()
    assert found["mass"].isfinite().all()
    masked = ~c.tensors["mask"]
    assert not found["prob"][masked].any()
    total = found["mass"].square().sum() + found["prob"].square().sum()
    if backend != "reference":  # its autograd multiplies by 0
        for g in torch.autograd.grad(total, [c.tensors[n] for n in ("x", "prototypes")]):
            assert g.isfinite().all()


@SOFTMAX
def test_a_prior_of_nothing_is_a_mask(backend):
    c = call("softmax", 30, 7, 4)
    c.tensors["log_prior"][[1, 5]] = -torch.inf
    mask = torch.ones(7, dtype=torch.bool)
    mask[[1, 5]] = False
    prior = torch.where(mask, c.tensors["log_prior"], 0.0)
    found, expected = (
        t.results(backend=backend) for t in (c, c.change(log_prior=prior, mask=mask))
    )
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@SOFTMAX
def test_without_prob_the_rest_is_the_same(backend):
    c = call("softmax", 30, 7, 4).train()
    leaves = [c.tensors[n] for n in ("x", "prototypes", "log_prior")]
    grads = []
    for want in (True, False):
        found = c.run(backend=backend, return_prob=want)
        assert (found.prob is None) == (not want)
        grads.append(torch.autograd.grad(found.mass.square().sum() + found.lse.sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@SOFTMAX
def test_masses_are_sums_and_rows_are_shares(backend):
    for mask in (None, "shared"):
        found = call("softmax", 1300, 9, 6, mask=mask).outputs(backend=backend)
        torch.testing.assert_close(found["prob"].sum(1), torch.ones(1300))
        torch.testing.assert_close(found["mass"].sum(), torch.tensor(1300.0))
        torch.testing.assert_close(found["mass"], found["prob"].double().sum(0).float())


@LOSS
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_what_takes_no_part_may_hold_anything(reduction, backend):
    c = call("cross_entropy", 40, 5, 6, metric="euclidean", mask="rows", reduction=reduction)
    c.tensors["mask"][5] = False
    c.tensors["target"][7] = -100
    clean = c.results(backend=backend)
    x = c.tensors["x"].clone()
    x[c.tensors["target"] == -100] = torch.nan
    x[5] = torch.nan
    found = c.change(x=x).results(backend=backend)
    for name, value in found.items():
        assert torch.equal(value, clean[name]), name
    assert not found["dx"][[5, 7]].any()
    if reduction == "none":
        assert not found["loss"][[5, 7]].any()


@LOSS
def test_a_mean_over_nothing_is_nan_without_gradient(backend):
    c = call("cross_entropy", 9, 5, 6)
    c.tensors["target"][:] = -100
    found = c.results(backend=backend)
    assert found.pop("loss").isnan()
    assert not any(g.any() for g in found.values())


@LOSS
def test_a_masked_label_costs_infinity(backend):
    c = call("cross_entropy", 9, 5, 6, mask="shared", reduction="sum").train()
    c.tensors["mask"][:] = torch.tensor([True, True, False, True, True])
    c.tensors["target"][:] = torch.tensor([0, 1, 3, 4, 0, 1, 3, 4, 2])
    loss = c.run(backend=backend)
    assert loss == torch.inf
    (dx,) = torch.autograd.grad(loss, c.tensors["x"])
    rest = c.rows(slice(8, 9)).train()
    # That of the log of the total, over what is left.
    lse = prototype_softmax(
        **{n: t for n, t in rest.tensors.items() if n != "target"},
        metric="sqeuclidean",
        temperature=c.options["temperature"],
        backend="reference",
    ).lse
    (expected,) = torch.autograd.grad(lse.sum(), rest.tensors["x"])
    torch.testing.assert_close(dx[8:], expected)


@LOSS
def test_every_integer_type_and_ignored_class(backend):
    c = call("cross_entropy", 40, 5, 6)
    c.tensors["target"] = torch.arange(40) % 5
    whole = c.run(backend=backend)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        narrow = c.change(target=c.tensors["target"].to(dtype))
        assert torch.equal(narrow.run(backend=backend), whole)
    ignored = c.run(backend=backend, ignore_index=3)
    kept = c.rows(c.tensors["target"] != 3)
    torch.testing.assert_close(ignored, kept.run(backend=backend))


@LOSS
def test_a_class_that_is_absent_still_repels(backend):
    c = call("cross_entropy", 40, 5, 6).train()
    c.tensors["target"][:] = torch.arange(40) % 4
    loss = c.run(backend=backend)
    (dmu,) = torch.autograd.grad(loss, c.tensors["prototypes"])
    assert loss.isfinite() and dmu[4].any() and dmu.isfinite().all()


@LOSS
def test_hard_labels_are_soft_ones(backend):
    c = call("cross_entropy", 60, 7, 6, weighted=True)
    target = torch.arange(60) % 7
    hard = c.change(target=target).results(backend=backend)
    soft = c.change(target=torch.nn.functional.one_hot(target, 7).float()).results(backend=backend)
    for name, value in hard.items():
        torch.testing.assert_close(value, soft[name], rtol=2e-5, atol=1e-6)


@LOSS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_scaled_loss_keeps_small_gradients(dtype, backend):
    """A mean over 4096 rows of float16: without the scale most gradients are below its range."""
    c = call("cross_entropy", 4096, 5, 6, dtype=dtype).train("x")
    scale = 2.0**14
    (dx,) = torch.autograd.grad(c.run(backend=backend) * scale, c.tensors["x"])
    wide = c.widened().train("x")
    (exact,) = torch.autograd.grad(wide.run(backend="reference") * scale, wide.tensors["x"])
    unit = torch.finfo(dtype).eps
    small = exact.abs() < 1e-2 * exact.abs().max()
    error = (dx.double() - exact).abs()
    assert error.max() <= 4 * unit * exact.abs().max()
    # What float32 made of the probabilities, and one rounding of something small.
    assert (error[small] <= (64 * 2**-24 + 4e-2 * unit) * exact.abs().max()).all()


@LOSS
def test_upstream_gradients_scale(backend):
    for reduction in ("sum", "mean"):
        c = call("cross_entropy", 60, 7, 6, reduction=reduction).train()
        leaves = [c.tensors[n] for n in ("x", "prototypes", "log_prior")]
        one = torch.autograd.grad(c.run(backend=backend), leaves)
        four = torch.autograd.grad(c.run(backend=backend) * 4, leaves)
        for a, b in zip(one, four, strict=True):
            torch.testing.assert_close(4 * a, b, rtol=1e-6, atol=0)


@LOSS
def test_a_graph_that_is_kept_gives_the_same_twice(backend):
    c = call("cross_entropy", 60, 7, 6).train()
    loss = c.run(backend=backend)
    loss.backward(retain_graph=True)
    once = c.tensors["x"].grad.clone()
    loss.backward()
    torch.testing.assert_close(c.tensors["x"].grad, 2 * once)


@LOSS
def test_loss_is_the_cross_entropy_of_the_distances(backend):
    for metric in METRICS:
        c = call("cross_entropy", 60, 7, 6, metric=metric, prior=False, weighted=True)
        distance = prototype_distance(
            c.tensors["x"], c.tensors["prototypes"], metric=metric, backend="reference"
        )
        expected = torch.nn.functional.cross_entropy(
            -distance / c.options["temperature"],
            c.tensors["target"],
            weight=c.tensors["class_weight"],
        )
        found = prototype_cross_entropy(**c.tensors, **c.options, backend=backend)
        torch.testing.assert_close(found, expected)


@LOSS
@pytest.mark.parametrize("metric", METRICS)
def test_a_masked_prototype_may_hold_anything(metric, backend):
    x, mu, labels = random_tensor((30, 7), seed=1), random_tensor((5, 7), seed=2), torch.arange(30)
    mu[3], mask = torch.nan, torch.arange(5) != 3
    few = mu[mask].clone().requires_grad_()
    a, b, c = (t.clone().requires_grad_() for t in (x, mu, x))
    loss = prototype_cross_entropy(
        a, b, (labels % 4) + (labels % 4 == 3).int(), metric=metric, mask=mask, backend=backend
    )
    same = prototype_cross_entropy(c, few, labels % 4, metric=metric, backend=backend)
    torch.testing.assert_close(loss, same)
    found = torch.autograd.grad(loss, (a, b))
    expected = torch.autograd.grad(same, (c, few))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][mask], expected[1])
    assert not found[1][3].any()


@needs_extension
@pytest.mark.parametrize("reduction", range(3))
def test_a_label_that_is_none_costs_nan_and_pulls_nothing(reduction):
    """What compiled code and GPUs get, where nobody raises."""
    x, mu = random_tensor((9, 4), seed=1), random_tensor((3, 4), seed=2)
    labels = torch.tensor([0, 1, 2, 0, 7, -100, -5, 1, 2])
    rest = None, None, None, None, 0, 1.0, -100, reduction, 3
    ours, exact = (
        primitives.prototype_cross_entropy(x, mu, labels, *rest)
        for primitives in (ops.primitives("cpu"), reference)
    )
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert ours[0].isnan().any() and ours[1].isfinite().all() and ours[4] == 4


@pytest.mark.parametrize("metric", METRICS[:2])
@pytest.mark.parametrize("backend", backends("assign"))
def test_every_row_finds_itself_between_far_clusters(metric, backend):
    """The expansion errs by more than the distances within a cluster: D=128 terms that add up."""
    if backend == "reference":
        pytest.skip("its product is the platform's, whose sums are shorter")
    _, mu = clusters(n=2, k=400, d=128)
    apart = 1.2345 * (1 + torch.linspace(-2e-3, 2e-3, 64))
    for points in (mu, torch.cat([apart, -apart])[:, None].expand(-1, 64).contiguous()):
        found = prototype_assign(points, points, metric=metric, backend=backend)
        assert found.index[:, 0].equal(torch.arange(len(points))) and not found.distance.any()


@LOSS
def test_soft_weights_may_sum_to_nothing(backend):
    x, mu = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    target = torch.tensor([[1.0, -1.0]])
    loss = prototype_cross_entropy(x, mu, target, reduction="sum", backend=backend)
    assert loss.item() == pytest.approx(-9.0)


@SOFTMAX
def test_what_is_masked_for_all_stays_masked_for_a_nan_row(backend):
    x, mu = torch.tensor([[torch.nan, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    none = torch.tensor([False, False])
    found = prototype_softmax(x, mu, mask=none, backend=backend)
    assert (found.lse == -torch.inf).all() and not found.prob.any() and not found.mass.any()
    nearest = prototype_assign(x, mu, mask=none, backend=backend)
    assert (nearest.distance == torch.inf).all() and (nearest.index == -1).all()


@LOSS
def test_a_row_that_overflows_is_no_success(backend):
    x, mu = torch.tensor([[1e20, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    loss = prototype_cross_entropy(x, mu, torch.tensor([0]), backend=backend)
    assert not loss.isfinite()


@DISTANCE
def test_the_gradient_of_close_pairs_does_not_hang_on_its_sign(backend):
    mu = random_tensor((10, 16), seed=2)
    own = torch.arange(200)
    x = mu[own % 10] + 1e-4 * random_tensor((200, 16), seed=1)
    wide = [t.double().requires_grad_() for t in (x, mu)]
    exact = (wide[0] - wide[1][own % 10]).square().sum()
    for sign in (1.0, -1.0):
        a, b = x.clone().requires_grad_(), mu.clone().requires_grad_()
        picked = prototype_distance(a, b, backend=backend)[own, own % 10].sum() * sign
        found = torch.autograd.grad(picked, (a, b))
        for gradient, right in zip(
            found, torch.autograd.grad(sign * exact, wide, retain_graph=True), strict=True
        ):
            error = (gradient - right).abs().max() / right.abs().max()
            assert error < (1e-5 if backend == "cpu" else 1e-2)  # the reference expands
