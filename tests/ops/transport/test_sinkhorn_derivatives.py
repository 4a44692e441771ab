"""What is refused (a second derivative, a plan with held potentials), torch.func, autocast."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad as func_grad
from torch.func import vmap

from fedkernels import sinkhorn, sinkhorn_divergence, sinkhorn_points
from tests.ops.kit import CPU, needs_extension
from tests.ops.transport.calls import BACKENDS, masses, uniform

pytestmark = pytest.mark.once

SECOND = "cannot be differentiated again"
OPTIONS = {"eps": 0.2, "max_iter": 30}


def outputs(backend):
    """A scalar of each differentiable result, by name, of (cost, a)."""

    def of(cost, a, grad="implicit"):
        return sinkhorn(cost, a, grad=grad, backend=backend, **OPTIONS)

    return {
        "value": lambda cost, a: of(cost, a, "envelope").value.sum(),
        "linear": lambda cost, a: of(cost, a).linear_cost.sum(),
        "plan": lambda cost, a: of(cost, a).plan().square().sum(),
        "apply": lambda cost, a: of(cost, a).apply(torch.ones(4, 2)).square().sum(),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["value", "linear", "plan", "apply"])
def test_a_second_derivative_is_refused(kind, backend):
    function = outputs(backend)[kind]
    cost, a = uniform(2, 3, 4), masses(2, 3)
    leaf, mass = cost.clone().requires_grad_(), a.clone().requires_grad_()
    plain = torch.autograd.grad(function(leaf, mass), (leaf, mass))
    found = torch.autograd.grad(function(leaf, mass), (leaf, mass), create_graph=True)
    for first, tied in zip(plain, found, strict=True):
        assert torch.equal(first, tied)
        for other in (leaf, mass):
            with pytest.raises(RuntimeError, match=SECOND):
                torch.autograd.grad(tied.sum(), other, retain_graph=True)
    with pytest.raises(RuntimeError, match=SECOND):
        func_grad(lambda c: func_grad(function)(c, a).sum())(cost)


@needs_extension
def test_a_compiled_second_derivative_is_refused():
    torch._dynamo.reset()
    cost = uniform(2, 3, 4).requires_grad_()
    compiled = torch.compile(
        lambda c: sinkhorn(c, backend="cpu", **OPTIONS).value.sum(), backend="aot_eager"
    )

    def second():
        (g,) = torch.autograd.grad(compiled(cost), cost, create_graph=True)
        return torch.autograd.grad(g.sum(), cost)

    with pytest.raises(RuntimeError, match=r"double backward|differentiated again"):
        second()
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"transforms inside torch\.compile are not supported"):
        torch.compile(
            func_grad(lambda c: sinkhorn(c, backend="cpu", **OPTIONS).value.sum()),
            fullgraph=True,
            backend="aot_eager",
        )(cost.detach())
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_held_potentials_refuse_all_but_the_value(backend):
    cost = uniform(2, 3, 4).requires_grad_()
    found = sinkhorn(cost, backend=backend, **OPTIONS)
    V = uniform(4, 2).requires_grad_()
    for refused in (
        found.linear_cost,
        found.value + found.linear_cost,
        found.plan(),
        found.apply(V),
    ):
        with pytest.raises(RuntimeError, match='pass grad="implicit"'):
            torch.autograd.grad(refused.sum(), cost, retain_graph=True)
    assert found.linear_cost.isfinite().all()  # reading is fine
    found.value.sum().backward()
    torch.testing.assert_close(cost.grad, found.plan().detach())
    # Held potentials are right for V: the product is linear in it.
    held = sinkhorn(cost.detach(), backend=backend, **OPTIONS)
    (dV,) = torch.autograd.grad(held.apply(V).sum(), V)
    torch.testing.assert_close(dV[:, 0], held.plan().sum((0, 1)))


@pytest.mark.parametrize("backend", [CPU])
def test_func(backend):
    cost, a = uniform(3, 3, 4), masses(3, 3)
    for kind, function in outputs(backend).items():
        leaf = cost.clone().requires_grad_()
        expected = torch.autograd.grad(function(leaf, a), leaf)[0]
        torch.testing.assert_close(func_grad(function)(cost, a), expected, msg=kind)
    each = vmap(lambda c, m: sinkhorn(c, m, backend=backend, **OPTIONS).value)(cost, a)
    assert torch.equal(each, sinkhorn(cost, a, backend=backend, **OPTIONS).value)


@pytest.mark.parametrize("backend", [CPU])
def test_autocast_changes_nothing(backend):
    x, y = uniform(2, 6, 3).requires_grad_(), uniform(2, 5, 3, seed=1).requires_grad_()

    def run():
        found = sinkhorn_points(x, y, grad="implicit", backend=backend, **OPTIONS)
        total = found.value + found.linear_cost + found.plan().square().sum((1, 2))
        return [total, *torch.autograd.grad(total.sum(), (x, y))]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
    for first, second in zip(plain, cast, strict=True):
        assert first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize("backend", [CPU])
def test_a_cloud_against_itself(backend):
    x = uniform(2, 6, 3).requires_grad_()
    other = x.detach().clone().requires_grad_()
    one = sinkhorn_points(x, x, backend=backend, **OPTIONS).value.sum()
    two = sinkhorn_points(x, other, backend=backend, **OPTIONS).value.sum()
    (both,) = torch.autograd.grad(one, x)
    torch.testing.assert_close(both, sum(torch.autograd.grad(two, (x, other))))
    divergence = sinkhorn_divergence(x, x, eps=0.2, backend=backend).value
    # The three values cancel: eight roundings of their size, and what tol = 1e-5 leaves.
    assert (divergence.abs() < 8 * 2**-23 * one.detach().abs() + 1e-5).all()
