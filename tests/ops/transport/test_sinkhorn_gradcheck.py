"""Gradients of the public functions against finite differences, in float64.

Masses go through a softmax: the gradient of a balanced problem is projected onto equal totals.
"""

from __future__ import annotations

import pytest
import torch

from fedkernels import sinkhorn, sinkhorn_divergence, sinkhorn_points
from tests.ops.kit import needs_extension
from tests.ops.transport.calls import F64, uniform

pytestmark = [needs_extension, pytest.mark.once]
OPTIONS = {"tol": 1e-13, "max_iter": 5000, "solver": "sinkhorn", "backend": "cpu"}
PENALTIES = [None, 1.0, (0.7, None), (None, 0.7), (0.5, 2.0)]


def leaf(*shape: int, seed: int) -> torch.Tensor:
    return uniform(*shape, dtype=F64, seed=seed).requires_grad_()


def dense(shared_b: bool = False):
    """cost, logits of a and b (one row for all, if shared), eps, V."""
    b = leaf(4, seed=3) if shared_b else leaf(2, 4, seed=3)
    eps = torch.tensor([0.3, 0.5], dtype=F64, requires_grad=True)
    return leaf(2, 3, 4, seed=1), leaf(2, 3, seed=2), b, eps, leaf(2, 4, 2, seed=5)


def check(function, *leaves) -> None:
    assert torch.autograd.gradcheck(lambda *t: function(*t) + 0 * sum(x.sum() for x in t), leaves)


@pytest.mark.parametrize("given", ["both", "a", "b", "none"])
@pytest.mark.parametrize("rho", PENALTIES)
def test_value(rho, given):
    total = 1.0 if rho is None else 1.3

    def value(cost, a, b, eps):
        a = a.softmax(-1) * total if given in ("both", "a") else None
        b = b.softmax(-1) if given in ("both", "b") else None
        return sinkhorn(cost, a, b, eps=eps, rho=rho, **OPTIONS).value

    check(value, *dense(shared_b=True)[:4])


@pytest.mark.parametrize("given", ["both", "a", "none"])
def test_value_in_the_entropy_convention(given):
    def value(cost, a, b, eps):
        a = 1.7 * a.softmax(-1) if given != "none" else None
        b = 1.7 * b.softmax(-1) if given == "both" else None
        return sinkhorn(cost, a, b, eps=eps, reg_type="entropy", **OPTIONS).value

    check(value, *dense()[:4])


@pytest.mark.parametrize("kind", ["linear_cost", "plan", "apply"])
@pytest.mark.parametrize("rho", PENALTIES)
def test_implicit(rho, kind):
    total = 1.0 if rho is None else 1.3

    def result(cost, a, b, eps, V):
        masses = a.softmax(-1) * total, b.softmax(-1)
        found = sinkhorn(cost, *masses, eps=eps, rho=rho, grad="implicit", **OPTIONS)
        return {
            "linear_cost": lambda: found.linear_cost,
            "plan": found.plan,
            "apply": lambda: found.apply(V),
        }[kind]()

    check(result, *dense())


def test_one_cost_and_ragged_sizes():
    sizes = torch.tensor([[2, 4], [3, 3], [3, 4]])

    def value(cost, a, eps):
        mass = (a[None] + torch.zeros(3, 1)).masked_fill(
            torch.arange(3) >= sizes[:, :1], -torch.inf
        )
        found = sinkhorn(cost, mass.softmax(-1), eps=eps, sizes=sizes, grad="implicit", **OPTIONS)
        return found.value + found.linear_cost + found.plan().square().sum((1, 2))

    check(value, leaf(3, 4, seed=1), leaf(3, seed=2), torch.tensor(0.4, dtype=F64).requires_grad_())


@pytest.mark.parametrize("grad", ["envelope", "implicit"])
def test_zero_masses_have_finite_gradients_that_are_limits(grad):
    cost, a = uniform(1, 4, 3, dtype=F64, seed=1), torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=F64)

    def of(mass):
        mass = mass.requires_grad_()
        found = sinkhorn(cost, mass, eps=0.3, grad=grad, **OPTIONS)
        result = found.value if grad == "envelope" else found.linear_cost
        return torch.autograd.grad(result.sum(), mass)[0]

    shifted = a + 1e-9 * torch.tensor([0.0, 1.0, 0.0, -1.0])
    at_zero = of(a.clone())
    assert at_zero.isfinite().all() and abs(at_zero.sum()) < 1e-12
    torch.testing.assert_close(at_zero, of(shifted), rtol=0, atol=1e-7)


def cloud():
    eps = torch.tensor([0.3, 0.5], dtype=F64, requires_grad=True)
    return leaf(2, 3, 2, seed=1), leaf(4, 2, seed=2), leaf(2, 3, seed=3), leaf(4, seed=4), eps


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["value", "linear_cost", "plan", "apply"])
def test_points(kind, metric):
    V = uniform(4, 2, dtype=F64, seed=5)

    def result(x, y, a, b, eps):
        found = sinkhorn_points(
            x, y, a.softmax(-1), b.softmax(-1), eps=eps, metric=metric, grad="implicit",
            **OPTIONS,
        )  # fmt: skip
        return {
            "value": lambda: found.value,
            "linear_cost": lambda: found.linear_cost,
            "plan": found.plan,
            "apply": lambda: found.apply(V),
        }[kind]()

    check(result, *cloud())


@pytest.mark.parametrize("rho", [None, 1.0])
@pytest.mark.parametrize("given", ["both", "a", "none"])
def test_divergence(given, rho):
    total = 1.0 if rho is None else 1.3

    def value(x, y, a, b, eps):
        a = total * a.softmax(-1) if given != "none" else None
        b = b.softmax(-1) if given == "both" else None
        return sinkhorn_divergence(x, y, a, b, eps=eps, rho=rho, **OPTIONS).value

    check(value, *cloud())
