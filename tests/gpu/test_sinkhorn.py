"""Sinkhorn on a GPU: within budget of the reference, the same bits alone and in company, no wait.

Tests marked `sanitize` are small: compute-sanitizer runs them (`make sanitize`).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkernels import sinkhorn, sinkhorn_divergence, sinkhorn_points
from fedkernels.testing import assert_within_budget

CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)
# Each shape is another kernel class, or a remainder of one.
SHAPES = [(1, 1), (16, 16), (17, 30), (64, 64), (100, 65), (256, 256), (300, 500)]
PLAIN = {"solver": "sinkhorn", "tol": 0.0, "max_iter": 40}


def problems(batch: int, n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    a, b = drawn(batch, n) + 0.1, drawn(batch, m) + 0.1
    return drawn(batch, n, m), a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def clouds(batch: int, n: int, m: int, D: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(batch, size, D, generator=generator) for size in (n, m))


def outcome(function, tensors, place_of, dtype, **options) -> dict[str, Tensor]:
    """value, linear cost, plan and the gradients of value, on the CPU."""
    device, backend = place_of
    leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
    result = function(*leaves, backend=backend, **options)
    weights = torch.linspace(1, 2, result.value.numel(), device=device, dtype=dtype)
    grads = torch.autograd.grad(result.value, leaves, weights.reshape(result.value.shape))
    found = {"value": result.value, "linear": result.linear_cost, "plan": result.plan()}
    found.update({f"gradient {i}": g for i, g in enumerate(grads)})
    return {name: t.detach().cpu() for name, t in found.items()}


def compare(function, tensors, place, **options) -> None:
    if place.backend == "cpu" and tensors[0].numel() > 3 * 100 * 65:
        pytest.skip("the test itself is tried on the smaller problems")
    actual = outcome(function, tensors, (place.device, place.backend), torch.float32, **options)
    near = outcome(function, tensors, ("cpu", "reference"), torch.float32, **options)
    exact = outcome(function, tensors, ("cpu", "reference"), torch.float64, **options)
    for name, value in actual.items():
        # Batches of scalars and of mass gradients are one row.
        rows = [t if t.ndim == 3 else t.reshape(1, -1) for t in (value, near[name], exact[name])]
        assert_within_budget(*rows, name=name)


@pytest.mark.sanitize
@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("mode", ["absorb", "log"])
def test_values_and_gradients(place, n, m, mode):
    compare(sinkhorn, problems(3, n, m), place, eps=0.1, mode=mode, **PLAIN)


@pytest.mark.sanitize
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize(("n", "m"), [(9, 13), (150, 70)])
def test_points(place, n, m, metric):
    compare(sinkhorn_points, clouds(2, n, m), place, eps=0.5, metric=metric, **PLAIN)


@pytest.mark.parametrize("rho", [1.0, (None, 0.5)])
def test_unbalanced(place, rho):
    compare(sinkhorn, problems(3, 40, 50), place, eps=0.1, rho=rho, **PLAIN)


def test_a_large_problem(place):
    compare(sinkhorn, problems(1, 700, 900), place, eps=0.1, **{**PLAIN, "max_iter": 12})


@pytest.mark.sanitize
def test_a_problem_is_the_same_alone_and_in_company(place):
    cost, a, b = (t.to(place.device) for t in problems(5, 48, 33))
    sizes = torch.tensor([[48, 33], [20, 33], [48, 9], [31, 17], [0, 0]], device=place.device)
    options = {"eps": 0.1, "tol": 1e-6, "max_iter": 300, "backend": place.backend}
    masses = [torch.ones_like(a), torch.ones_like(b)]
    for k, mass in enumerate(masses):
        for i, row in enumerate(sizes.tolist()):
            mass[i, : row[k]] /= max(row[k], 1)
    together = sinkhorn(cost, *masses, sizes=sizes, **options)
    for i in range(4):
        n, m = sizes[i].tolist()
        alone = sinkhorn(cost[i, :n, :m], masses[0][i, :n], masses[1][i, :m], **options)
        assert torch.equal(alone.value, together.value[i])
        assert torch.equal(alone.f, together.f[i, :n]) and torch.equal(alone.g, together.g[i, :m])
        assert torch.equal(alone.plan(), together.plan()[i, :n, :m])
    again = sinkhorn(cost, *masses, sizes=sizes, **options)
    assert torch.equal(again.plan(), together.plan())
    order = torch.tensor([3, 0, 4, 2, 1], device=place.device)
    turned = sinkhorn(cost[order], *(mass[order] for mass in masses), sizes=sizes[order], **options)
    assert torch.equal(
        turned.value,
        together.value[order],
    )


@pytest.mark.sanitize
def test_a_bad_problem_is_named_and_harms_no_other(place):
    cost, a, b = (t.to(place.device) for t in problems(4, 20, 20))
    options = {"eps": 0.1, "backend": place.backend}
    clean = sinkhorn(cost, a, b, **options)
    spoilt, negative = cost.clone(), a.clone()
    spoilt[1, 3, 4] = float("nan")
    negative[2, 0] = -1.0
    result = sinkhorn(spoilt, negative, b, **options)
    assert result.status.tolist() == [CONVERGED, NON_FINITE, INFEASIBLE, CONVERGED]
    assert result.value[1].isnan() and result.value[2].isnan()
    for i in (0, 3):
        assert torch.equal(result.value[i], clean.value[i])


def test_divergence_of_equal_clouds_is_zero(place):
    x, y = (t.to(place.device) for t in clouds(2, 60, 60))
    same = sinkhorn_divergence(x, x, eps=0.5, tol=1e-7, max_iter=2000, backend=place.backend)
    other = sinkhorn_divergence(x, y, eps=0.5, tol=1e-7, max_iter=2000, backend=place.backend)
    assert bool((other.value > 0).all())
    # Three float32 values of the size of the cost are subtracted from each other.
    size = float((x[:, :, None] - x[:, None]).square().sum(-1).mean())
    assert float(same.value.abs().max()) <= 8 * torch.finfo(torch.float32).eps * size


def test_nothing_waits_for_the_gpu(kernel_on_gpu):
    backend = kernel_on_gpu.backend
    tensors = [t.cuda().requires_grad_() for t in problems(3, 64, 64)]
    x, y = (t.cuda().requires_grad_() for t in clouds(2, 80, 90))

    def step() -> None:
        sinkhorn(*tensors, eps=0.1, backend=backend).value.sum().backward()
        sinkhorn_points(x, y, eps=0.5, max_iter=20, backend=backend).value.sum().backward()

    step()  # what is compiled or allocated once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_runs_on_the_current_stream(kernel_on_gpu):
    cost, a, b = (t.cuda() for t in problems(64, 64, 64))
    expected = sinkhorn(cost, a, b, eps=0.1, backend=kernel_on_gpu.backend).value
    stream = torch.cuda.Stream()
    late = torch.full_like(cost, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the other stream would read NaN
        late.copy_(cost)
        value = sinkhorn(late, a, b, eps=0.1, backend=kernel_on_gpu.backend).value
    stream.synchronize()
    assert torch.equal(value, expected)


def test_it_is_captured_in_a_graph(kernel_on_gpu):
    cost, a, b = (t.cuda() for t in problems(8, 48, 64))
    options = {"eps": 0.1, "max_iter": 50, "backend": kernel_on_gpu.backend}
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            sinkhorn(cost, a, b, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sinkhorn(cost, a, b, **options).value
    other = problems(8, 48, 64, seed=5)[0].cuda()
    cost.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, sinkhorn(other, a, b, **options).value)


def test_another_gpu_than_the_current_one(kernel_on_gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    tensors = problems(3, 32, 32)
    first, second = (
        sinkhorn(*(t.to(d) for t in tensors), eps=0.1, backend=kernel_on_gpu.backend)
        for d in ("cuda:0", "cuda:1")
    )
    assert second.value.device.index == 1
    assert torch.equal(first.value.cpu(), second.value.cpu())


@pytest.mark.slow
def test_offsets_past_two_to_the_31(kernel_on_gpu):
    count = 2**31 // (64 * 64) + 4  # 8.6 GB of costs
    cost = torch.rand(count, 64, 64, device="cuda")
    options = {"eps": 0.1, "max_iter": 5, "tol": 0.0, "backend": kernel_on_gpu.backend}
    tail = sinkhorn(cost, **options).value[-4:]
    assert torch.equal(tail, sinkhorn(cost[-4:].clone(), **options).value)
