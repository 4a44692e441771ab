"""A second derivative raises on the compiled kernels, and is right on the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import grad as func_grad

from fedkernels import select_middle, triple_lora_delta, triple_lora_linear
from fedkernels.testing import random_tensor
from tests.ops.kit import TENSORS, call, needs_extension

pytestmark = pytest.mark.once

REFUSED = 'no second derivative; pass backend="reference"'
# What a gradient does not depend on has a second derivative of 0 that nobody has to refuse.
DEPENDS = [
    (first, second)
    for first, second in itertools.product(("x", "weight", "A", "T", "B"), repeat=2)
    if first != second
    and {first, second} not in ({"weight", "A"}, {"weight", "T"}, {"weight", "B"})
]


def _small(**options):
    return call((4,), 6, 5, 2, dtype=torch.float64, **options)


@needs_extension
@pytest.mark.parametrize(("first", "second"), DEPENDS)
def test_eager_refuses_the_derivative_of_each_gradient_by_each_tensor(first, second):
    c = _small().train(first, second)
    y = c.y(backend="cpu")
    (g,) = torch.autograd.grad(y.sum(), c.tensors[first], create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), c.tensors[second])
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), c.tensors[second], allow_unused=True)


@needs_extension
@pytest.mark.parametrize("sizes", [(40, 24), (80, 72)])  # own product, the platform's
def test_create_graph_changes_no_first_derivative(sizes):
    c = call((20,), *sizes).train(*TENSORS)
    leaves = list(c.tensors.values())
    plain = torch.autograd.grad(c.y(backend="cpu").square().sum(), leaves)
    with_graph = torch.autograd.grad(c.y(backend="cpu").square().sum(), leaves, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_graph, strict=True))
    for g in with_graph:
        with pytest.raises(RuntimeError, match=REFUSED):
            torch.autograd.grad(g.sum(), c.tensors["x"], retain_graph=True)


@needs_extension
@pytest.mark.parametrize("name", TENSORS)
def test_eager_refuses_the_derivative_by_the_incoming_gradient(name):
    c = _small().train(name)
    y = c.y(backend="cpu")
    upstream = torch.ones_like(y, requires_grad=True)
    (g,) = torch.autograd.grad(y, c.tensors[name], upstream, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), upstream)


@needs_extension
@pytest.mark.parametrize(("first", "second"), DEPENDS)
def test_func_refuses_rather_than_give_zero(first, second):
    c = _small()

    def value(a, b):
        tensors = {**c.tensors, first: a, second: b}
        return triple_lora_linear(**tensors, **c.options, backend="cpu").sum()

    def inner(b):
        return func_grad(value)(c.tensors[first], b).sum()

    with pytest.raises(RuntimeError, match=REFUSED):
        func_grad(inner)(c.tensors[second])


@needs_extension
@pytest.mark.parametrize("name", ["x", "weight", "A", "T", "B"])
def test_func_refuses_the_derivative_of_a_gradient_by_its_own_tensor(name):
    c = _small()

    def value(t):
        tensors = {**c.tensors, name: t}
        return triple_lora_linear(**tensors, **c.options, backend="cpu").square().sum()

    with pytest.raises(RuntimeError, match=REFUSED):
        func_grad(lambda t: func_grad(value)(t).sum())(c.tensors[name])


@needs_extension
def test_delta_refuses_too():
    c = _small().train("x", "B")
    t = c.tensors
    y = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], backend="cpu")
    (g,) = torch.autograd.grad(y.square().sum(), t["B"], create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), t["x"])


@needs_extension
@pytest.mark.parametrize("contiguous", [True, False])
def test_selection_refuses(contiguous):
    middle = random_tensor((3, 4, 4), seed=1, layout="contiguous" if contiguous else "transposed")
    middle.requires_grad_()
    scores = random_tensor((3, 4, 4), seed=2, requires_grad=True)
    T, _ = select_middle(middle, scores, 2, backend="cpu")
    (g,) = torch.autograd.grad(T.sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), middle, allow_unused=True)

    def value(m, s):
        return select_middle(m, s, 2, backend="cpu")[0].square().sum()

    with pytest.raises(RuntimeError, match=REFUSED):
        func_grad(lambda m: func_grad(value, argnums=1)(m, scores.detach()).sum())(middle.detach())


@needs_extension
def test_compiled_create_graph_is_refused():
    c = _small().train("x", "B")
    torch._dynamo.reset()
    compiled = torch.compile(lambda: c.y(backend="cpu"), fullgraph=True, backend="aot_eager")
    y = compiled()

    def second():
        (g,) = torch.autograd.grad(y.square().sum(), c.tensors["B"], create_graph=True)
        return torch.autograd.grad(g.sum(), c.tensors["x"])

    with pytest.raises(RuntimeError, match=r"double backward|second derivative"):
        second()


@needs_extension
def test_compiling_a_transform_is_refused_with_the_way_out():
    c = _small()

    def gradient(x, backend):
        return func_grad(lambda x: c.y_of(x, backend).square().sum())(x)

    c.y_of = lambda x, backend: triple_lora_linear(
        **{**c.tensors, "x": x}, **c.options, backend=backend
    )
    x = c.tensors["x"]
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"transforms inside torch\.compile are not supp"):
        torch.compile(gradient, fullgraph=True, backend="aot_eager")(x, "cpu")
    torch._dynamo.reset()
    # Without fullgraph Dynamo leaves the graph, and eager's numbers come out.
    actual = torch.compile(gradient, backend="aot_eager")(x, "cpu")
    torch.testing.assert_close(actual, gradient(x, "reference"))


def test_the_reference_has_a_right_second_derivative():
    for options in ({}, {"plain": True}, {"residual": False}):
        c = _small(**options)
        names = [n for n in TENSORS if c.tensors[n] is not None]
        c = c.train(*names)

        def function(*values, c=c, names=names):
            tensors = {**c.tensors, **dict(zip(names, values, strict=True))}
            return triple_lora_linear(**tensors, **c.options, backend="reference")

        assert torch.autograd.gradgradcheck(function, [c.tensors[n] for n in names])


def test_the_reference_selection_has_a_second_derivative_through_straight_through():
    middle = random_tensor((2, 3, 3), dtype=torch.float64, seed=1, requires_grad=True)
    scores = random_tensor((2, 3, 3), dtype=torch.float64, seed=2, requires_grad=True)
    T, index = select_middle(middle, scores, 2, backend="reference")
    weights = random_tensor((2, 2, 2), dtype=torch.float64, seed=3)
    (g,) = torch.autograd.grad(T, scores, weights, create_graph=True)
    (gg,) = torch.autograd.grad(g.sum(), middle)  # g = weights * middle at the index
    expected = torch.zeros(2, 9, dtype=torch.float64).scatter(1, index, weights.flatten(1))
    assert torch.equal(gg.flatten(1), expected)
