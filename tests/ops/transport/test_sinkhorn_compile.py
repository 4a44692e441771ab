"""opcheck of every op; torch.compile without a graph break, equal to eager, no recompilation."""

from __future__ import annotations

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fedkernels import sinkhorn, sinkhorn_divergence, sinkhorn_points
from fedkernels.transport.ops import primitives
from tests.ops.kit import needs_extension
from tests.ops.transport.calls import masses, uniform

pytestmark = [needs_extension, pytest.mark.once]
OPS = primitives("cpu")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["given", "absent", "shared", "ragged", "empty"])
def test_opcheck(kind, dtype):
    batch, n, m, D = (0 if kind == "empty" else 3), 5, 4, 2
    one = 1 if kind == "shared" else batch
    x, y = uniform(one, n, D, dtype=dtype), uniform(one, m, D, dtype=dtype, seed=1)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    given = kind not in ("absent", "ragged")
    a = masses(one, n, dtype=dtype) if given else None
    b = masses(one, m, dtype=dtype) if given else None
    sizes = torch.tensor([[5, 4], [2, 3], [1, 1]]) if kind == "ragged" else None
    g0 = uniform(batch, m, dtype=dtype, seed=2) if kind == "given" else None
    eps = torch.full((1 if kind == "shared" else batch,), 0.2, dtype=torch.float64)
    common = (a, b, eps, sizes, g0, batch)
    rho = (math.inf, math.inf)
    torch.library.opcheck(OPS.sinkhorn_forward, (cost, *common, *rho, 9, 1e-3, False, True))
    torch.library.opcheck(
        OPS.sinkhorn_points_forward, (x, y, *common, 0, *rho, 9, 0.0, False, False)
    )
    found = OPS.sinkhorn_forward(cost, *common, *rho, 9, 0.0, False, False)
    u, v, weight = found[4], found[5], torch.ones(batch, dtype=dtype)
    V, W = uniform(batch, m, 3, dtype=dtype), uniform(batch, n, 3, dtype=dtype)
    for scale in (None, weight):
        torch.library.opcheck(OPS.sinkhorn_plan, (cost, eps, sizes, u, v, scale))
        torch.library.opcheck(OPS.sinkhorn_points_plan, (x, y, eps, sizes, 2, u, v, scale))
    for values, transpose in ((V, False), (W, True)):
        torch.library.opcheck(OPS.sinkhorn_apply, (cost, eps, sizes, u, v, values, transpose))
        torch.library.opcheck(
            OPS.sinkhorn_points_apply, (x, y, eps, sizes, 0, u, v, values, transpose)
        )
    for alpha, beta in ((None, None), (u.exp(), v.exp())):
        torch.library.opcheck(
            OPS.sinkhorn_points_backward, (x, y, eps, sizes, 1, u, v, weight, weight, alpha, beta)
        )
    torch.library.opcheck(torch.ops.fedkernels.held_gradient.default, (torch.zeros(3, 2), "no"))


def _dense(cost, a, eps, V, grad):
    found = sinkhorn(cost, a, eps=eps, grad=grad, backend="cpu", max_iter=50)
    results = [found.value]
    if grad == "implicit":
        results += [found.linear_cost, found.plan(), found.apply(V)]
    return results, [found.f, found.n_iter, found.status]


# One case of inductor is enough: it compiles for seconds.
@pytest.mark.parametrize(
    ("grad", "backend"),
    [("envelope", "aot_eager"), ("implicit", "aot_eager"), ("envelope", "inductor")],
)
def test_compiled_equals_eager(grad, backend):
    leaves = [
        uniform(6, 5, 4).requires_grad_(),
        masses(6, 5).requires_grad_(),
        torch.full((6,), 0.2).requires_grad_(),
    ]
    V = uniform(6, 4, 2, seed=3)
    compiled = torch.compile(_dense, fullgraph=True, backend=backend)
    outcome = []
    for function in (_dense, compiled):
        differentiable, rest = function(*leaves, V, grad)
        total = sum((k + 1.5) * t.square().sum() for k, t in enumerate(differentiable))
        outcome.append([*differentiable, *rest, *torch.autograd.grad(total, leaves)])
    for eager, other in zip(*outcome, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-6)
        if backend == "aot_eager":
            assert torch.equal(eager, other)


@pytest.mark.parametrize("function", [sinkhorn_points, sinkhorn_divergence])
def test_compiled_points(function):
    x, y = uniform(3, 6, 2).requires_grad_(), uniform(5, 2, seed=1).requires_grad_()

    def run():
        return function(x, y, eps=0.3, rho=1.0, max_iter=30, backend="cpu").value

    outcome = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        value = call()
        outcome.append([value, *torch.autograd.grad(value.sum(), (x, y))])
    for eager, compiled in zip(*outcome, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("train", [False, True])
def test_other_batch_sizes_do_not_recompile(train):
    counter = CompileCounterWithBackend("aot_eager")

    def run(cost, a):
        return sinkhorn(cost, a, eps=0.1, backend="cpu").value

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for count, most in ((6, 1), (6, 1), (9, 2), (3, 2), (12, 2)):
        cost, a = uniform(count, 5, 4).requires_grad_(train), masses(count, 5)
        value = compiled(cost, a)
        assert torch.equal(value, run(cost, a))
        if train:
            value.sum().backward()
        assert counter.frame_count <= most, count


def test_a_compiled_result_keeps_its_methods():
    cost = uniform(3, 5, 4)
    found = torch.compile(
        lambda c: sinkhorn(c, eps=0.1, backend="cpu"), fullgraph=True, backend="aot_eager"
    )(cost)
    assert torch.equal(found.plan(), sinkhorn(cost, eps=0.1, backend="cpu").plan())


def test_compiled_envelope_refuses_the_linear_cost_when_it_is_differentiated():
    cost = uniform(3, 5, 4).requires_grad_()

    def run(cost):
        found = sinkhorn(cost, eps=0.1, backend="cpu")
        return found.value, found.linear_cost, found.plan()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    value, linear, plan = compiled(cost)
    (grad,) = torch.autograd.grad(value.sum(), cost, retain_graph=True)
    assert torch.equal(grad, torch.autograd.grad(run(cost)[0].sum(), cost)[0])
    for refused in (linear, value + linear, plan):
        with pytest.raises(RuntimeError, match='pass grad="implicit"'):
            torch.autograd.grad(refused.sum(), cost, retain_graph=True)
