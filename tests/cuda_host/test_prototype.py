"""The CUDA kernels of prototypes on the host, against the specification."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedkernels.prototype import reference
from fedkernels.testing import error_budget
from tests.cuda_host.build import ORDERS
from tests.cuda_host.prototypes import SOURCE, Kernels

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
NEAREST = 3


@pytest.fixture
def kernels(programs):
    return lambda variant="contracted", **options: Kernels(programs(SOURCE, variant), options)


@dataclass(frozen=True)
class Problem:
    x: Tensor
    mu: Tensor
    mask: Tensor | None
    prior: Tensor | None
    label: Tensor
    soft: Tensor
    class_weight: Tensor
    row_weight: Tensor
    upstream: tuple[Tensor, Tensor, Tensor]


def problem(N: int, K: int, D: int, *, dtype=torch.float32, masks: bool = True) -> Problem:
    generator = torch.Generator().manual_seed(N + 3 * K + D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    label = torch.randint(0, K, (N,), generator=generator)
    label[N // 3 : N // 3 + N // 9] = -100
    soft = torch.rand(N, K, generator=generator)
    return Problem(
        x=(normal(N, D) / D**0.5).to(dtype),
        mu=normal(K, D) / D**0.5,
        mask=torch.rand(N, K, generator=generator) > 0.2 if masks else None,
        prior=normal(K) if masks else None,
        label=label,
        soft=soft / soft.sum(1, keepdim=True),
        class_weight=torch.rand(K, generator=generator) + 0.5,
        row_weight=normal(N),
        upstream=(normal(N, K), normal(N), normal(K)),
    )


def compare(kernels: Kernels, name: str, *arguments, gradients: int = 99) -> tuple[Tensor, ...]:
    """Every result within budget of the specification; from result `gradients` on as a whole and
    without the row measure: a row's sum with cancellation is a matter of luck, of the reference
    too."""
    wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments]
    groups = [
        getattr(kernels, name)(*arguments),
        getattr(reference, name)(*arguments),
        getattr(reference, name)(*wide),
    ]
    results = [(g,) if isinstance(g, Tensor) else g for g in groups]
    for i, (found, near, exact) in enumerate(zip(*results, strict=True)):
        if not found.is_floating_point():
            assert torch.equal(found, near), (name, i)
            continue
        trio = [found, near, exact]
        if i >= gradients:
            trio = [t.reshape(1, -1) for t in trio]
        report = error_budget(*trio, name=f"{name}[{i}]")
        # Coarse: every exponential is off by the largest error that CUDA states, at once.
        allowed = 2 if kernels.program.variant == "coarse" else 1
        assert report.used <= allowed, report.message()
    return results[0]


def check(kernels: Kernels, c: Problem, metric: int) -> None:
    """All primitives."""
    distance = compare(kernels, "prototype_distance", c.x, c.mu, metric)[0]
    compare(
        kernels, "prototype_distance_backward", c.x, c.mu, distance, c.upstream[0], metric, 3,
        gradients=0,
    )  # fmt: skip
    compare(kernels, "prototype_assign", c.x, c.mu, c.mask, metric, NEAREST)
    softmax = (c.prior, c.mask)
    _, lse, _ = compare(
        kernels, "prototype_softmax", c.x, c.mu, *softmax, metric, 0.7, True, gradients=1
    )
    compare(
        kernels, "prototype_softmax_backward", c.x, c.mu, *softmax, lse, *c.upstream, metric, 0.7,
        7, gradients=0,
    )  # fmt: skip
    compare(
        kernels, "prototype_cross_entropy", c.x, c.mu, c.label, *softmax, c.class_weight, None,
        metric, 0.7, -100, 2, 7, gradients=0,
    )  # fmt: skip


@pytest.mark.parametrize("metric", range(4), ids=METRICS)
@pytest.mark.parametrize("variant", ["contracted", "coarse"])
def test_every_metric(kernels, variant, metric):
    check(kernels(variant), problem(70, 67, 21), metric)


@pytest.mark.parametrize(
    ("sizes", "metric"),
    [((1, 1, 2), 0), ((64, 64, 16), 2), ((65, 3, 33), 1), ((3, 130, 17), 0), ((129, 9, 4), 3)],
    ids=str,
)
def test_sizes_around_a_tile(kernels, sizes, metric):
    check(kernels(), problem(*sizes, masks=False), metric)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(kernels, dtype):
    check(kernels(), problem(9, 67, 20, dtype=dtype), 0)
    check(kernels(), problem(9, 5, 7, dtype=dtype), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_as_torch_does(kernels, dtype):
    kind = {torch.bfloat16: 1, torch.float16: 2}[dtype]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(-(2**31), 2**31 - 1, (20000,), generator=generator, dtype=torch.int32)
    middle = every.float() + (every.view(torch.int16) + 1).view(dtype).float()
    x = torch.cat([every.float(), some.view(torch.float32), middle / 2])
    found, read = torch.zeros(len(x), dtype=dtype), torch.zeros(len(x))
    kernels().program.call("storage", x, kind, len(x), found.view(torch.int16), read)
    expected = x.to(dtype)
    assert torch.equal(found.nan_to_num(7e4), expected.nan_to_num(7e4))
    assert torch.equal(read.nan_to_num(7e4), expected.float().nan_to_num(7e4))


@pytest.mark.parametrize("sizes", [(0, 3, 4), (0, 70, 0), (5, 3, 0), (2, 67, 0)], ids=str)
def test_nothing_to_sum(kernels, sizes):
    c = problem(*sizes, masks=False)
    for metric in range(4):
        distance = kernels().prototype_distance(c.x, c.mu, metric)
        assert (distance == (1.0 if metric == 2 else 0.0)).all()
        found = kernels().prototype_cross_entropy(
            c.x, c.mu, c.label, None, None, None, None, metric, 1.0, -100, 1, 7
        )
        expected = reference.prototype_cross_entropy(
            c.x, c.mu, c.label, None, None, None, None, metric, 1.0, -100, 1, 7
        )
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=1e-6)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", range(3), ids=["none", "sum", "mean"])
def test_cross_entropy_in_every_form(kernels, hard, reduction):
    c = problem(66, 10, 18)
    target = c.label if hard else c.soft
    for weight, row_weight, mask in (
        (None, None, None),
        (c.class_weight, c.row_weight, c.mask[:1]),
    ):
        compare(
            kernels(), "prototype_cross_entropy", c.x, c.mu, target, c.prior, mask, weight,
            row_weight, 0, 0.5, -100, reduction, 0 if reduction == 0 else 7, gradients=0,
        )  # fmt: skip


def test_rows_without_a_part(kernels):
    """Ignored, masked, weightless, out of range: no gradient, whatever their values are."""
    c = problem(12, 5, 6)
    c.x[:5] = math.nan
    c.mask[:] = True
    c.mask[1] = False
    c.mask[7, 2] = False
    c.class_weight[3] = 0
    c.row_weight[3] = 0
    label = torch.tensor([-100, 0, 3, 1, 9, 0, 1, 2, 3, 4, 0, 1])
    arguments = (c.x, c.mu, label, None, c.mask, c.class_weight, c.row_weight, 0, 1.0, -100)
    loss = kernels().prototype_cross_entropy(*arguments, 0, 0)[0]
    assert loss[[0, 1, 2, 8]].tolist() == [0, 0, 0, 0] and loss[7] == math.inf
    assert loss[3:5].isnan().all() and loss[[5, 6, 9, 10, 11]].isfinite().all()
    total, *gradients, bad = kernels().prototype_cross_entropy(*arguments, 1, 7)
    expected = reference.prototype_cross_entropy(*arguments, 1, 7)
    assert total.isnan() and bad == 4
    assert gradients[0][:5].count_nonzero() == 0
    for found, known in zip(gradients, expected[1:4], strict=True):
        assert torch.allclose(found, known, atol=1e-5)


def test_masked_rows_of_a_softmax(kernels):
    c = problem(10, 70, 18)
    c.mask[2] = False
    c.prior[4:60] = -math.inf
    c.mask[3, :4], c.mask[3, 60:] = False, False
    prob, lse, mass = compare(
        kernels(), "prototype_softmax", c.x, c.mu, c.prior, c.mask, 1, 0.7, True, gradients=1
    )
    assert lse[2:4].tolist() == [-math.inf] * 2 and prob[2:4].count_nonzero() == 0
    without = kernels().prototype_softmax(c.x, c.mu, c.prior, c.mask, 1, 0.7, False)
    assert without[0].numel() == 0 and torch.equal(without[1], lse)
    assert torch.allclose(without[2], mass)
    g_lse = c.upstream[1]
    for g_prob, g_mass in ((None, None), (c.upstream[0], None), (None, c.upstream[2])):
        compare(
            kernels(), "prototype_softmax_backward", c.x, c.mu, c.prior, c.mask, lse, g_prob, g_lse,
            g_mass, 1, 0.7, 7, gradients=0,
        )  # fmt: skip


def test_nearest_of_two_clusters_far_apart(kernels):
    """By the expansion alone nearly every row of these would name a wrong prototype."""
    generator = torch.Generator().manual_seed(5)
    side = torch.where(torch.arange(80) % 2 == 0, 1e4, -1e4)[:, None]
    x = side + torch.randn(80, 24, generator=generator)
    mu = side[:70] + torch.randn(70, 24, generator=generator)
    direct = (x[:, None] - mu).square().sum(2)
    for metric in (0, 1):
        distance, index = kernels().prototype_assign(x, mu, None, metric, 1)
        assert torch.equal(index[:, 0], direct.argmin(1))
        # Of 24 squares, each rounded, and of their differences.
        true = (x.double()[:, None] - mu.double()).square().sum(2).amin(1)
        true = true.sqrt() if metric == 1 else true
        assert ((distance[:, 0] - true).abs() <= 32 * 2**-24 * true).all()
        own = kernels().prototype_distance(x[:40], x[:40].clone(), metric)
        assert own.diagonal().count_nonzero() == 0
    compare(kernels(), "prototype_distance", x, mu, 1)


def test_equal_vectors_have_cosine_distance_zero(kernels):
    c = problem(40, 3, 37)
    c.x[1] = 0
    distance = kernels().prototype_distance(c.x, c.x * 1.0, 2)
    assert distance[1].eq(1).all() and distance[:, 1].eq(1).all()
    rest = torch.arange(40) != 1
    assert distance.diagonal()[rest].count_nonzero() == 0
    nearest, index = kernels().prototype_assign(c.x[2:], c.x[2:].clone(), None, 2, 1)
    assert nearest.count_nonzero() == 0 and torch.equal(index[:, 0], torch.arange(38))


@pytest.mark.parametrize("metric", range(4), ids=METRICS)
def test_ties_and_places_without_a_prototype(kernels, metric):
    c = problem(7, 70, 18)
    mu = c.mu.clone()
    mu[35:] = mu[:35]
    distance, index = compare(kernels(), "prototype_assign", c.x, mu, None, metric, 32)
    assert torch.equal(index[:, 0::2] + 35, index[:, 1::2])
    assert torch.equal(distance[:, 0::2], distance[:, 1::2])
    mu[3] = math.nan
    c.mask[:, 6:] = False
    c.mask[0] = False
    c.mask[1] = False
    c.mask[1, 3] = True
    distance, index = kernels().prototype_assign(c.x, mu, c.mask, metric, 9)
    known = reference.prototype_assign(c.x, mu, c.mask, metric, 9)
    assert torch.equal(index, known[1])
    assert torch.allclose(distance, known[0], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert distance[0].eq(math.inf).all() and distance[1].isnan().all()


@pytest.mark.parametrize("metric", [0, 1, 2], ids=METRICS[:3])
def test_a_bad_row_stays_with_itself(kernels, metric):
    c = problem(20, 7, 18, masks=False)
    rest = torch.arange(20) != 3
    calls = {
        "prototype_distance": (metric,),
        "prototype_assign": (None, metric, 2),
        "prototype_softmax": (None, None, metric, 1.0, True),
    }
    before = {name: getattr(kernels(), name)(c.x, c.mu, *rest) for name, rest in calls.items()}
    c.x[3, 2] = math.nan
    for name, more in calls.items():
        found, old = getattr(kernels(), name)(c.x, c.mu, *more), before[name]
        for new, known in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, old)),
                              strict=True):  # fmt: skip
            if len(new) == 7:
                assert new.isnan().all()  # mass
                continue
            assert torch.equal(new[rest], known[rest]), name
            assert new[3].isnan().all() if new.is_floating_point() else new[3].eq(-1).all()
    none = torch.zeros(20, 7)
    g_lse = torch.ones(20)
    g_lse[3] = 0
    lse = kernels().prototype_softmax(c.x, c.mu, None, None, metric, 1.0, False)[1]
    dx, dmu, _ = kernels().prototype_softmax_backward(
        c.x, c.mu, None, None, lse, none, g_lse, None, metric, 1.0, 3
    )
    assert dx.isfinite().all() and dx[3].count_nonzero() == 0 and dmu.isfinite().all()
    distance = kernels().prototype_distance(c.x, c.mu, metric)
    grad = c.upstream[0].clone()
    grad[3] = 0
    dx, dmu = kernels().prototype_distance_backward(c.x, c.mu, distance, grad, metric, 3)
    assert dx.isfinite().all() and dx[3].count_nonzero() == 0 and dmu.isfinite().all()


def test_a_masked_prototype_may_be_anything(kernels):
    c = problem(20, 7, 18, masks=False)
    mu, mask = c.mu.clone(), torch.ones(20, 7, dtype=torch.bool)
    mu[5] = math.nan
    mask[:, 5] = False
    label = c.label.where(c.label != 5, 0)
    found = kernels().prototype_cross_entropy(
        c.x, mu, label, None, mask, None, None, 0, 1.0, -100, 2, 7
    )
    kept = torch.arange(7) != 5
    known = reference.prototype_cross_entropy(
        c.x, mu[kept], label - (label > 5).long(), None, None, None, None, 0, 1.0, -100, 2, 7
    )
    assert torch.allclose(found[0], known[0]) and torch.allclose(found[1], known[1], atol=1e-6)
    assert torch.allclose(found[2][kept], known[2], atol=1e-6)
    assert found[2][5].count_nonzero() == 0 and found[3][5] == 0


def everything(kernels: Kernels, c: Problem, need: int = 7) -> list[Tensor]:
    distance = kernels.prototype_distance(c.x, c.mu, 1)
    found = [distance, *kernels.prototype_assign(c.x, c.mu, c.mask, 0, 5)]
    softmax = kernels.prototype_softmax(c.x, c.mu, c.prior, c.mask, 2, 0.7, True)
    found += softmax
    found += kernels.prototype_distance_backward(c.x, c.mu, distance, c.upstream[0], 1, need & 3)
    found += kernels.prototype_softmax_backward(
        c.x, c.mu, c.prior, c.mask, softmax[1], *c.upstream, 2, 0.7, need
    )
    found += kernels.prototype_cross_entropy(
        c.x, c.mu, c.soft, c.prior, c.mask, c.class_weight, None, 0, 0.7, -100, 2, need
    )
    return found


def test_bits_depend_on_nothing_else(kernels):
    c = problem(70, 67, 18)
    together = everything(kernels(), c)
    for order in ORDERS[1:]:
        again = everything(kernels(order=order), c)
        assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True)), order
    # Gradients that are not needed leave the others as they are.
    for need in (1, 2, 4):
        some = everything(kernels(), c, need)
        for a, b in zip(some, together, strict=True):
            assert a.numel() == 0 or torch.equal(a, b)
    # Rows alone.
    x, mask = c.x[30:34].clone(), c.mask[30:34].clone()
    few = kernels().prototype_assign(x, c.mu, mask, 0, 5)
    few += kernels().prototype_softmax(x, c.mu, c.prior, mask, 2, 0.7, True)[:2]
    for a, b in zip(few, [*together[1:3], *together[3:5]], strict=True):
        assert torch.equal(a, b[30:34])


def test_gradients_of_many_prototypes_take_two_launches(kernels):
    """With little room for sums over rows: dx from many stripes, then dmu of parts."""
    c = problem(140, 130, 18)
    whole = everything(kernels(), c)
    program = kernels().program
    program.call("prototype_stripe_scratch", 130 * 20 * 4)
    try:
        apart = everything(kernels(), c)
        for need in (1, 2, 4):
            some = everything(kernels(), c, need)
            assert all(
                a.numel() == 0 or torch.equal(a, b) for a, b in zip(some, apart, strict=True)
            )
    finally:
        program.call("prototype_stripe_scratch", 0)
    for a, b in zip(apart, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        assert len(a.shape) == 0 or len(a) != 140 or torch.equal(a, b)  # rows: the same bits


def test_memory_under_the_sanitizers(kernels):
    """One call of each kernel: a child process each is what takes the time."""
    c = problem(66, 67, 19, dtype=torch.bfloat16)
    run = kernels("sanitized")
    run.prototype_assign(c.x, c.mu, c.mask, 0, 5)
    distance = run.prototype_distance(c.x, c.mu, 2)
    run.prototype_distance_backward(c.x, c.mu, distance, c.upstream[0], 2, 3)
    run.prototype_cross_entropy(
        c.x, c.mu, c.soft, c.prior, c.mask, c.class_weight, c.row_weight, 1, 0.7, -100, 2, 7
    )
