"""Conditional transport as an op: gradcheck, opcheck, compile, torch.func, memory, errors."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad as func_grad

import fedkernels
from fedkernels import BackendUnavailable, conditional_transport
from fedkernels.transport import api, ops
from tests.ops.kit import BACKENDS, needs_extension
from tests.ops.transport.conditional import MODES, OUTPUTS, TENSORS, Call, call

REFUSED = 'no second derivative; pass backend="reference"'


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_gradcheck(mode, backend):
    c = call(1, 6, 4, 3, cost=mode[0], logits=mode[1], dtype=torch.float64).train()

    def function(*values):
        tensors = dict(zip(TENSORS, values, strict=True))
        r = Call(tensors, c.options).run(backend=backend, rho=0.3)
        return (r.value, *(getattr(r, name) for name in OUTPUTS))

    assert torch.autograd.gradcheck(function, [c.tensors[n] for n in TENSORS])


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(2, 9, 5, 4), (1, 3, 7, 4), (1, 0, 3, 2), (0, 4, 3, 2)])
def test_opcheck(size, dtype):
    c = call(*size, dtype=dtype)
    t = c.tensors
    op = ops.primitives("cpu")
    for inputs in ((t["x"], t["y"], t["p"], t["q"]), (t["x"], t["y"], None, None)):
        torch.library.opcheck(op.conditional_transport_forward, (*inputs, 1, 0, 0.5))
        outputs = op.conditional_transport_forward(*inputs, 1, 0, 0.5)
        upstream = c.upstream(list(outputs))
        for need in (0, 1, 2, 3) if inputs[2] is None else (0, 5, 15):
            arguments = (*inputs, *outputs, *upstream, 1, 0, 0.5, need)
            torch.library.opcheck(op.conditional_transport_backward, arguments)


@pytest.mark.once
@needs_extension
def test_compiled_is_eager_and_a_second_size_costs_one_graph():
    counter = CompileCounterWithBackend("aot_eager")

    def run(x, y, p):
        r = conditional_transport(x, y, p=p, temperature=2.0, backend="cpu")
        return r.value, r.row_cost

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for n, (rows, most) in enumerate(((9, 1), (9, 1), (33, 2), (50, 2), (7, 2))):
        c = call(1, rows, 5, 4, seed=n).train()
        inputs = [c.tensors[name][0] for name in ("x", "y", "p")]
        found = []
        for function in (run, compiled):
            value, row_cost = function(*inputs)
            total = value + row_cost.square().sum()
            found.append((value.detach(), row_cost.detach(), *torch.autograd.grad(total, inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert counter.frame_count <= most, rows


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("first", TENSORS)
def test_a_second_derivative_is_refused(first):
    c = call(1, 6, 4, 3).train()
    r = c.run(backend="cpu")
    (g,) = torch.autograd.grad(r.value.sum(), c.tensors[first], create_graph=True)
    for second in TENSORS:
        with pytest.raises(RuntimeError, match=REFUSED):
            torch.autograd.grad(g.sum(), c.tensors[second], retain_graph=True)

    values = call(1, 6, 4, 3).tensors

    def value(t):
        return Call({**values, first: t}, c.options).run(backend="cpu").value.sum()

    with pytest.raises(RuntimeError, match=REFUSED):
        func_grad(lambda t: func_grad(value)(t).sum())(values[first])


@pytest.mark.once
def test_the_reference_has_a_second_derivative():
    c = call(1, 4, 3, 2, dtype=torch.float64).train("x", "y")

    def function(x, y):
        return Call({**c.tensors, "x": x, "y": y}, c.options).run(backend="reference").value

    assert torch.autograd.gradgradcheck(function, [c.tensors["x"], c.tensors["y"]])


@pytest.mark.once
@needs_extension
def test_transforms_are_autograd_and_a_loop():
    c = call(3, 6, 4, 3, dtype=torch.float64)

    def value(*tensors):
        one = Call(dict(zip(TENSORS, tensors, strict=True)), c.options)
        return one.run(backend="cpu").value

    values = [c.tensors[n] for n in TENSORS]
    gradients = func_grad(value, argnums=(0, 1, 2, 3))
    together = torch.vmap(gradients)(*values)
    trained = c.train()
    expected = torch.autograd.grad(
        trained.run(backend="cpu").value.sum(), [trained.tensors[n] for n in TENSORS]
    )
    for a, b in zip(together, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.once
@needs_extension
def test_autocast_changes_nothing():
    c = call(1, 20, 5, 8).train()
    plain = c.run(backend="cpu").row_cost
    for backend in ("cpu", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            r = c.run(backend=backend)
        assert r.row_cost.dtype == torch.float32
        torch.testing.assert_close(r.row_cost, plain)


_MEMORY = """
    import resource, torch
    from fedkernels import conditional_transport
    torch.set_num_threads(2)
    N, M, D = 20_000, 5_000, 16           # a matrix of pairs would be 400 MB
    x, y = torch.randn(N, D).requires_grad_(), torch.randn(M, D).requires_grad_()
    small = conditional_transport(x[:100], y[:100], backend="cpu").value
    torch.autograd.grad(small, (x, y))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.autograd.grad(conditional_transport(x, y, backend="cpu").value, (x, y))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.once
@needs_extension
def test_no_matrix_of_pairs():
    """Scratch is at most 32 MiB, the gradients are 2 MB; the rest is room for the allocator."""
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64


ones = torch.ones
BAD = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": ones(5)}, ValueError, r"x must be \(N, D\) or \(B, N, D\), got \(5,\)"),
    ({"y": ones(1, 1, 1, 3)}, ValueError, r"y must be \(M, D\) or \(B, M, D\), got"),
    ({"y": ones(4, 5)}, ValueError, r"x and y must be .*got x \(6, 3\) and y \(4, 5\)"),
    ({"y": ones(1, 4, 3)}, ValueError, r"x and y must be .*y \(1, 4, 3\)"),
    ({"x": ones(2, 6, 3), "y": ones(3, 4, 3)}, ValueError, r"x and y must be .*x \(2, 6, 3\)"),
    ({"x": ones(6, 3, dtype=torch.int64)}, TypeError, "x must be float32, .*got torch.int64"),
    ({"y": ones(4, 3, dtype=torch.float64)}, TypeError, "y must have x's dtype torch.float32"),
    ({"y": ones(4, 3, device="meta")}, ValueError, "y must be on x's device cpu, got meta"),
    ({"x": ones(6, 3).to_sparse()}, TypeError, "x must be a dense .*got torch.sparse_coo"),
    ({"p": ones(4)}, ValueError, r"p must be \(6,\), got \(4,\)"),
    ({"q": ones(1, 4)}, ValueError, r"q must be \(4,\), got \(1, 4\)"),
    (
        {"x": ones(2, 6, 3), "y": ones(2, 4, 3), "q": ones(3, 4)},
        ValueError,
        r"q must be \(4,\) or \(2, 4\), got \(3, 4\)",
    ),
    ({"p": ones(6, dtype=torch.int32)}, TypeError, "p must be float32, .*got torch.int32"),
    ({"cost": "l1"}, ValueError, "cost must be one of cosine, sqeuclidean; got 'l1'"),
    ({"logits": 3}, ValueError, "logits must be one of dot, cosine, neg_cost; got 3"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": float("inf")}, ValueError, "temperature must be .*got inf"),
    ({"temperature": "1"}, TypeError, "temperature must be a number, got str"),
    ({"rho": 1.5}, ValueError, "rho must be between 0 and 1, got 1.5"),
    ({"rho": float("nan")}, ValueError, "rho must be between 0 and 1, got nan"),
    ({"backend": "gpu"}, ValueError, "backend must be one of"),
    ({"backend": "cuda"}, BackendUnavailable, "the kernel runs on CUDA"),
]


@pytest.mark.once
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line(change, error, message):
    arguments = {"x": ones(6, 3), "y": ones(4, 3), **change}
    with pytest.raises(error, match=message) as caught:
        conditional_transport(**arguments)
    assert "\n" not in str(caught.value)


def test_info_lists_the_op():
    assert [candidate.name for candidate in api.OPS["conditional_transport"]] == [
        "cuda", "cpu", "triton", "reference",
    ]  # fmt: skip
