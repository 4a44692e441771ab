"""Conditional transport on a GPU: within budget of the reference, the same bits from run to run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkernels import conditional_transport
from fedkernels.testing import assert_within_budget

FIELDS = ("value", "forward", "backward", "row_cost", "col_cost", "row_lse", "col_lse")


def inputs(N: int, M: int, D: int, batch: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*batch, N, D, generator=generator)
    y = torch.randn(*batch, M, D, generator=generator)
    p = torch.rand(*batch, N, generator=generator) + 0.1
    q = torch.rand(*batch, M, generator=generator) + 0.1
    return [x, y, p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)]


def outcome(tensors, device, dtype, backend, order=None, **options) -> dict[str, Tensor]:
    """Every output, and the gradients of a sum in which each has its share. order: of the rows and
    columns, so that a row keeps its weight wherever it stands."""
    x, y, p, q = (t.to(device, dtype).requires_grad_() for t in tensors)
    result = conditional_transport(x, y, p=p, q=q, backend=backend, **options)
    found = {name: getattr(result, name) for name in FIELDS}
    total = torch.zeros((), device=device, dtype=dtype)
    for name, value in found.items():
        weight = torch.linspace(1, 2, value.numel(), dtype=dtype).reshape(value.shape)
        if order is not None and name.startswith(("row", "col")):
            weight = weight[..., order[name.startswith("col")]]
        total = total + (value * weight.to(device)).sum()
    for name, grad in zip("xypq", torch.autograd.grad(total, (x, y, p, q)), strict=True):
        found[f"d{name}"] = grad
    return {name: t.detach().cpu() for name, t in found.items()}


def reference(tensors, exact: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The reference in float32, with the luck of one order of summation taken out: of five orders
    of the points, each element as far from the exact one as it ever was."""
    x, y, p, q = tensors
    worst = {name: torch.zeros_like(t) for name, t in exact.items()}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(x.shape[-2], generator=generator)
        columns = torch.randperm(y.shape[-2], generator=generator)
        turned = (x[..., rows, :], y[..., columns, :], p[..., rows], q[..., columns])
        # The weights of the outputs in `outcome` follow the order: they are turned with it.
        found = outcome(turned, "cpu", torch.float32, "reference", (rows, columns), **options)
        for name, value in found.items():
            by_row = name.startswith("row") or name in ("dx", "dp")
            by_column = name.startswith("col") or name in ("dy", "dq")
            order = rows if by_row else columns if by_column else None
            along = -2 if name in ("dx", "dy") else -1
            back = value if order is None else value.index_select(along, order.argsort())
            off = back.double() - exact[name]
            worst[name] = torch.where(off.abs() > worst[name].abs(), off, worst[name])
    return {name: (exact[name] + off).float() for name, off in worst.items()}


def compare(tensors, place, **options) -> None:
    actual = outcome(tensors, place.device, torch.float32, place.backend, **options)
    exact = outcome(tensors, "cpu", torch.float64, "reference", **options)
    near = reference(tensors, exact, **options)
    for name, value in actual.items():
        rows = [t.reshape(1, -1) for t in (value, near[name], exact[name])]
        assert_within_budget(*rows, name=name)


@pytest.mark.sanitize
@pytest.mark.parametrize("shape", [(3, 2, 16), (65, 10, 33), (130, 100, 64)])
@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("logits", ["dot", "cosine", "neg_cost"])
def test_values_and_gradients(place, shape, cost, logits):
    compare(inputs(*shape), place, cost=cost, logits=logits, temperature=2.0, rho=0.3)


def test_one_point_each(place):
    """All plans are 1: every cost is that of the pair."""
    x, y, _, _ = inputs(1, 1, 33)
    result = conditional_transport(
        x.to(place.device), y.to(place.device), cost="sqeuclidean", backend=place.backend
    )
    costs = torch.stack([getattr(result, name).reshape(()) for name in FIELDS[:5]]).cpu()
    true = (x.double() - y.double()).square().sum()
    # A sum of 33 squares, each rounded, and a weight that is 1 up to rounding.
    assert float((costs.double() - true).abs().max()) <= 8 * torch.finfo(torch.float32).eps * true


def test_a_batch(place):
    compare(inputs(40, 30, 20, (3,)), place, temperature=2.0)


def test_more_rows_than_a_grid_is_wide(place):
    compare(inputs(5000, 10, 16), place, temperature=2.0)


def test_the_same_bits_from_run_to_run(place):
    first, second = (
        outcome(inputs(300, 100, 64), place.device, torch.float32, place.backend) for _ in range(2)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_nothing_waits_for_the_gpu(kernel_on_gpu):
    x, y, p, q = (t.cuda().requires_grad_() for t in inputs(300, 100, 64))

    def step() -> None:
        result = conditional_transport(x, y, p=p, q=q, backend=kernel_on_gpu.backend)
        result.value.backward()

    step()  # what is compiled or allocated once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
