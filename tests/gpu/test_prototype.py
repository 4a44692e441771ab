"""Prototypes on a GPU: within budget of the reference, the same bits from run to run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkernels import (
    class_mean,
    prototype_assign,
    prototype_cross_entropy,
    prototype_distance,
    prototype_softmax,
)
from fedkernels.testing import error_budget

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
SHAPES = [(3, 2, 16), (65, 10, 33), (130, 100, 64)]


def inputs(N: int, K: int, D: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    label = torch.randint(0, K, (N,), generator=generator)
    label[-1] = -100
    return {
        "x": normal(N, D) / D**0.5,
        "mu": normal(K, D) / D**0.5,
        "prior": normal(K),
        "mask": torch.rand(N, K, generator=generator) > 0.1,
        "label": label,
        "weight": torch.rand(N, generator=generator) + 0.1,
    }


def outcome(tensors, device, dtype, backend, metric, storage=None) -> dict[str, Tensor]:
    """Every result of the differentiable functions, and gradients of a weighted sum of each.

    storage: what x is rounded to; kept as that where dtype is float32.
    """
    given = {
        name: t.to(device, dtype) if t.is_floating_point() else t.to(device)
        for name, t in tensors.items()
    }
    x, mu, prior = (given[name] for name in ("x", "mu", "prior"))
    if storage is not None:
        x = x.to(storage).to(storage if dtype == torch.float32 else dtype)
    leaves = [t.detach().requires_grad_() for t in (x, mu, prior)]
    x, mu, prior = leaves
    options = {"metric": metric, "backend": backend}
    logits = {**options, "temperature": 0.5, "log_prior": prior, "mask": given["mask"]}
    softmax = prototype_softmax(x, mu, **logits)
    # "none" reads x again in its backward, "mean" has its gradient from the forward.
    found = {
        "distance": (prototype_distance(x, mu, **options),),
        "softmax": (softmax.prob, softmax.lse, softmax.mass),
        "loss": (prototype_cross_entropy(x, mu, given["label"], **logits),),
        "losses": (prototype_cross_entropy(x, mu, given["label"], reduction="none", **logits),),
        "mean": (class_mean(x, given["label"].clamp(min=0), len(mu), backend=backend).mean,),
    }
    results = {}
    for name, values in found.items():
        for i, value in enumerate(values):
            results[f"{name}[{i}]"] = value
        weights = [torch.linspace(1, 2, v.numel(), dtype=v.dtype).reshape(v.shape) for v in values]
        total = sum((v * w.to(device)).sum() for v, w in zip(values, weights, strict=True))
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        for leaf, grad in zip(("x", "mu", "prior"), grads, strict=True):
            if grad is not None:
                results[f"d {name} / d {leaf}"] = grad
    return {name: t.detach().cpu() for name, t in results.items()}


def compare(tensors, place, metric, storage=None) -> None:
    actual = outcome(tensors, place.device, torch.float32, place.backend, metric, storage)
    near, exact = (
        outcome(tensors, "cpu", dtype, "reference", metric, storage)
        for dtype in (torch.float32, torch.float64)
    )
    for name, value in actual.items():
        # As a whole: a row's sum with cancellation is a matter of luck, of the reference too.
        trio = [t.reshape(1, -1) for t in (value, near[name], exact[name])]
        report = error_budget(*trio, name=name)
        assert report.ok, report.message()


@pytest.mark.sanitize
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_values_and_gradients(place, shape, metric):
    compare(inputs(*shape), place, metric)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(place, storage):
    compare(inputs(70, 90, 40), place, "sqeuclidean", storage)


def test_more_rows_than_a_grid_is_wide(place):
    compare(inputs(5000, 10, 16), place, "sqeuclidean")


@pytest.mark.sanitize
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest(place, shape, metric):
    c = inputs(*shape)
    k = min(3, shape[1])
    found = prototype_assign(
        c["x"].to(place.device), c["mu"].to(place.device), metric=metric, k=k,
        backend=place.backend,
    )  # fmt: skip
    exact = prototype_distance(c["x"].double(), c["mu"].double(), metric=metric)
    best = exact.sort(1).values[:, :k]
    of_found = exact.gather(1, found.index.cpu())
    # Norms are about 1: what a distance errs by, and twice that where two of them are compared.
    assert (of_found - best).abs().max() <= 2 * 16 * 2**-24
    assert (found.distance.cpu() - of_found).abs().max() <= 16 * 2**-24 * (1 + exact.abs().max())


@pytest.mark.sanitize
def test_two_clusters_far_apart(place):
    generator = torch.Generator().manual_seed(5)
    side = torch.where(torch.arange(300) % 2 == 0, 1e4, -1e4)[:, None]
    x = side + torch.randn(300, 24, generator=generator)
    mu = side[:70] + torch.randn(70, 24, generator=generator)
    found = prototype_assign(x.to(place.device), mu.to(place.device), backend=place.backend)
    direct = (x.double()[:, None] - mu.double()).square().sum(2)
    assert torch.equal(found.index[:, 0].cpu(), direct.argmin(1))
    own = prototype_distance(x.to(place.device), x.to(place.device), backend=place.backend)
    assert own.diagonal().count_nonzero() == 0


def test_ties_masks_and_nan(place):
    c = inputs(40, 20, 24)
    x, mu, mask = c["x"], c["mu"], c["mask"]
    mu[10:] = mu[:10]
    mask[:] = True
    mask[4] = False
    x[7, 3] = float("nan")
    found = prototype_assign(
        x.to(place.device), mu.to(place.device), k=32, mask=mask.to(place.device),
        backend=place.backend,
    )  # fmt: skip
    index, distance = found.index.cpu(), found.distance.cpu()
    good = [i for i in range(40) if i not in (4, 7)]
    assert torch.equal(index[good, 0:20:2] + 10, index[good, 1:20:2])
    assert (index[:, 20:] == -1).all() and (index[[4, 7]] == -1).all()
    assert distance[4].isinf().all() and distance[7].isnan().all()


def test_labels_out_of_range_are_nan_on_a_gpu(kernel_on_gpu):
    c = {name: t.cuda() for name, t in inputs(20, 5, 8).items()}
    c["label"][3] = 9
    loss = prototype_cross_entropy(
        c["x"], c["mu"], c["label"], reduction="none", backend=kernel_on_gpu.backend
    )
    assert loss[3].isnan() and loss[:3].isfinite().all() and loss[4:].isfinite().all()


def test_the_same_bits_from_run_to_run(place):
    first, second = (
        outcome(inputs(3000, 100, 64), place.device, torch.float32, place.backend, "euclidean")
        for _ in range(2)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_bits_of_a_row_depend_on_that_row(place):
    if place.backend == "reference":
        pytest.skip("the library's products follow the shape")
    c = inputs(500, 100, 64)
    x, mu = c["x"].to(place.device), c["mu"].to(place.device)

    def rows(part: Tensor) -> list[Tensor]:
        softmax = prototype_softmax(part, mu, metric="cosine", backend=place.backend)
        nearest = prototype_assign(part, mu, k=4, backend=place.backend)
        return [softmax.prob, softmax.lse, nearest.distance, nearest.index]

    for whole, part in zip(rows(x), rows(x[117:130].clone()), strict=True):
        assert torch.equal(whole[117:130], part)


def test_nothing_waits_for_the_gpu(kernel_on_gpu):
    c = {name: t.cuda() for name, t in inputs(300, 100, 64).items()}
    x, mu = (c[name].requires_grad_() for name in ("x", "mu"))

    def step() -> None:
        options = {"backend": kernel_on_gpu.backend}
        loss = prototype_cross_entropy(x, mu, c["label"], **options)
        softmax = prototype_softmax(x, mu, mask=c["mask"], **options)
        mean = class_mean(x, c["label"].clamp(min=0), 100, **options).mean
        nearest = prototype_assign(x, mu, k=3, **options).distance
        (loss + softmax.lse.sum() + mean.sum() + nearest.sum()).backward()

    step()  # what is compiled or allocated once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_offsets_past_two_to_the_31(place):
    """Rows that begin past 2^31 elements of x, and pairs past 2^31 of a distance."""
    N, D = 2**25 + 70, 64
    x = torch.zeros(N, D, dtype=torch.bfloat16, device=place.device)
    last = inputs(6, 3, D)
    x[-6:] = last["x"].to(x)
    mu = last["mu"].to(place.device)
    nearest = prototype_assign(x, mu, backend=place.backend)
    few = prototype_assign(x[-6:].clone(), mu, backend=place.backend)
    assert torch.equal(nearest.index[-6:], few.index)
    assert torch.allclose(nearest.distance[-6:], few.distance)
    labels = torch.zeros(N, dtype=torch.int64, device=place.device)
    labels[-6:] = 1
    mean = class_mean(x, labels, 2, backend=place.backend)
    assert mean.count.tolist() == [N - 6, 6]
    assert torch.allclose(mean.mean[1], x[-6:].float().mean(0), atol=1e-6)
    del x, labels, nearest, mean
    many = torch.zeros(2**31 // 64 + 70, 2, device=place.device)
    many[-6:] = last["x"][:, :2].to(many)
    mu = inputs(6, 64, 2)["mu"].to(place.device)
    distance = prototype_distance(many, mu, backend=place.backend)
    assert torch.allclose(
        distance[-6:], prototype_distance(many[-6:].clone(), mu, backend=place.backend)
    )
