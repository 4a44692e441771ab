"""The gradients of the exact value: the plan and the centred duals."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport.emd import emd
from tests.ops.kit import needs_extension

pytestmark = [needs_extension, pytest.mark.once]


def problem(batch: int = 3, n: int = 4, m: int = 5):
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return drawn(batch, n, m), drawn(batch, n), drawn(batch, m)


def test_gradcheck_away_from_ties():
    """Masses through a softmax: totals stay 1, so that the constant of the duals is no matter."""
    cost, a, b = (t.requires_grad_() for t in problem())

    def value(cost, a, b):
        return emd(cost, a.softmax(1), b.softmax(1)).value

    # The value is linear between ties: differences of 1e-7 leave rounding alone.
    assert torch.autograd.gradcheck(value, (cost, a, b), eps=1e-7, atol=1e-7, rtol=1e-6)


def test_what_the_gradients_are():
    cost, a, b = problem()
    a, b = a.softmax(1).requires_grad_(), b.softmax(1).requires_grad_()
    cost.requires_grad_()
    result = emd(cost, a, b)
    weight = torch.tensor([1.0, -2.0, 0.5]).double()
    dcost, da, db = torch.autograd.grad(result.value, (cost, a, b), weight)
    assert torch.equal(dcost, result.plan * weight[:, None, None])
    for gradient, dual in ((da, result.f), (db, result.g)):
        wanted = (dual - dual.mean(1, keepdim=True)) * weight[:, None]
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-15)
    for field in (result.f, result.g, result.plan, result.status):
        assert not field.requires_grad


def test_shared_inputs_add_up():
    cost, a, b = problem()
    shared = [cost[0].requires_grad_(), a.softmax(1).requires_grad_()]
    row = b.softmax(1)[0].requires_grad_()
    got = torch.autograd.grad(emd(*shared, row).value.sum(), (*shared, row))
    apart = [shared[0].detach().expand(3, 4, 5).clone().requires_grad_(), shared[1]]
    rows = row.detach().expand(3, 5).clone().requires_grad_()
    wanted = torch.autograd.grad(emd(*apart, rows).value.sum(), (*apart, rows))
    torch.testing.assert_close(got[0], wanted[0].sum(0))
    assert torch.equal(got[1], wanted[1])
    torch.testing.assert_close(got[2], wanted[2].sum(0))


def test_ragged_and_lost_problems():
    cost, a, b = problem()
    a, b = a.softmax(1), b.softmax(1)
    a[0, 2:], b[0, 3:] = math.nan, math.nan
    a[0, :2] /= a[0, :2].sum()
    b[0, :3] /= b[0, :3].sum()
    b[1] *= 2  # infeasible
    leaves = [t.clone().requires_grad_() for t in (cost, a, b)]
    sizes = torch.tensor([[2, 3], [4, 5], [4, 5]])
    result = emd(*leaves, sizes=sizes)
    assert result.status.tolist() == [0, 3, 0]
    dcost, da, db = torch.autograd.grad(result.value, leaves, torch.ones(3).double())
    assert not any(gradient[1].any() for gradient in (dcost, da, db))
    assert not any(bool(gradient.isnan().any()) for gradient in (dcost, da, db))
    inside = [cost[0, :2, :3], a[0, :2], b[0, :3]]
    inside = [t.clone().requires_grad_() for t in inside]
    alone = torch.autograd.grad(emd(*inside).value, inside)
    assert torch.equal(dcost[0, :2, :3], alone[0]) and dcost[0].sum() == alone[0].sum()
    assert torch.equal(da[0, :2], alone[1]) and not da[0, 2:].any()
    assert torch.equal(db[0, :3], alone[2]) and not db[0, 3:].any()


def test_gradients_come_back_in_the_inputs_dtype():
    cost, a, b = problem()
    leaves = [t.float().requires_grad_() for t in (cost, a.softmax(1), b.softmax(1))]
    for gradient in torch.autograd.grad(emd(*leaves).value.sum(), leaves):
        assert gradient.dtype == torch.float32
    half = cost.half().requires_grad_()
    (gradient,) = torch.autograd.grad(emd(half).value.sum(), half)
    assert gradient.dtype == torch.float16


def test_a_second_derivative_raises():
    cost, a, _ = problem()
    a = a.softmax(1).requires_grad_()
    value = emd(cost.requires_grad_(), a).value.sum()
    (first,) = torch.autograd.grad(value, cost, create_graph=True)
    with pytest.raises(RuntimeError, match="emd: the value has no second derivative"):
        torch.autograd.grad(first.square().sum(), a)
    once = torch.func.grad(lambda c: emd(c, a.detach()).value.sum())
    torch.testing.assert_close(once(cost.detach()), first.detach())
    with pytest.raises(RuntimeError, match="emd: the value has no second derivative"):
        torch.func.grad(lambda c: once(c).square().sum())(cost.detach())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap loops over the op
def test_vmap_over_problems():
    cost, a, b = problem()
    a, b = a.softmax(1), b.softmax(1)
    one = torch.func.grad(lambda c, p, q: emd(c, p, q).value)
    assert torch.equal(torch.func.vmap(one)(cost, a, b), emd(cost, a, b).plan)
