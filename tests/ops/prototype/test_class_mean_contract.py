"""class_mean as an op: gradcheck, opcheck, compile, torch.func, memory, errors."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad as func_grad

import fedkernels
from fedkernels import BackendUnavailable, class_mean
from fedkernels.prototype import api, ops
from tests.ops.kit import BACKENDS, needs_extension
from tests.ops.prototype.means import TENSORS, Call, call

REFUSED = 'no second derivative; pass backend="reference"'


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)


def mean_of(c, backend):
    """c.run as a function of its floating tensors, and these."""
    names = [n for n in TENSORS if c.tensors[n] is not None and c.tensors[n].is_floating_point()]

    def function(*values):
        tensors = {**c.tensors, **dict(zip(names, values, strict=True))}
        return Call(tensors, c.options).run(backend=backend).mean

    return function, [c.tensors[n] for n in names]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.7])
def test_gradcheck(soft, momentum, backend):
    c = call(7, 4, 3, soft=soft, weighted=True, momentum=momentum, dtype=torch.float64)
    c.tensors["weight"].add_(0.5)  # a difference across 0 would be one of a negative weight
    function, values = mean_of(c.train(), backend)
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_of_a_weight_of_zero_is_the_limit(soft, backend):
    c = call(9, 3, 4, soft=soft, weighted=True, dtype=torch.float64)
    zero = c.results(backend=backend)["dweight"]
    c.tensors["weight"][::5] = 1e-12
    torch.testing.assert_close(zero, c.results(backend=backend)["dweight"], rtol=1e-9, atol=1e-10)


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [(9, 5, 4), (0, 3, 2), (3, 2, 0)])
def test_opcheck(size, dtype):
    op = ops.primitives("cpu").class_sum
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for soft in (False, True):
        t = call(*size, soft=soft, weighted=True, dtype=dtype).tensors
        labels = t["labels"].to(wide) if soft else t["labels"]
        for weight in (None, t["weight"].to(wide)):
            torch.library.opcheck(op, (t["x"], labels, weight, size[1]))


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("soft", [False, True])
def test_compiled_is_eager_and_a_second_size_costs_one_graph(soft):
    counter = CompileCounterWithBackend("aot_eager")

    def run(x, labels, weight, previous):
        options = {"weight": weight, "previous": previous, "momentum": 0.5, "backend": "cpu"}
        return class_mean(x, labels, 5, **options)

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for n, (rows, most) in enumerate(((9, 1), (9, 1), (33, 2), (50, 2), (7, 2))):
        c = call(rows, 5, 4, soft=soft, weighted=True, momentum=0.5, seed=n).train()
        inputs = [c.tensors[name] for name in TENSORS]
        leaves = [t for t in inputs if t.requires_grad]
        found = []
        for function in (run, compiled):
            r = function(*inputs)
            grads = torch.autograd.grad(r.mean.square().sum(), leaves)
            found.append((r.mean.detach(), r.count, *grads))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert counter.frame_count <= most, rows


@pytest.mark.once
@needs_extension
def test_compiled_code_leaves_bad_rows_out():
    def run(x, labels, weight):
        return class_mean(x, labels, 3, weight=weight, backend="cpu")

    x, labels, weight = torch.randn(6, 2), torch.tensor([0, 3, 1, -1, 2, 2]), torch.ones(6)
    weight[4] = -1.0
    good = torch.tensor([0, 2, 5])
    leaf = x.clone().requires_grad_()
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(leaf, labels, weight)
    expected = run(x[good], labels[good], weight[good])
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.count, expected.count)
    (grad,) = torch.autograd.grad(found.mean.sum(), leaf)
    assert grad[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("soft", [False, True])
def test_a_second_derivative_is_refused(soft):
    c = call(6, 3, 2, soft=soft, weighted=True, momentum=0.5)
    function, values = mean_of(c.train(), "cpu")
    (g,) = torch.autograd.grad(function(*values).square().sum(), values[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(g.sum(), values[0])
    function, values = mean_of(c, "cpu")

    def value(x):
        return function(x, *values[1:]).square().sum()

    with pytest.raises(RuntimeError, match=REFUSED):
        func_grad(lambda x: func_grad(value)(x).sum())(values[0])


@pytest.mark.once
@pytest.mark.parametrize("soft", [False, True])
def test_the_reference_has_a_second_derivative(soft):
    c = call(5, 3, 2, soft=soft, weighted=True, dtype=torch.float64)
    c.tensors["weight"].add_(0.5)
    function, values = mean_of(c.train(), "reference")
    assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.once
@needs_extension
@pytest.mark.parametrize("soft", [False, True])
def test_transforms_are_autograd_and_a_loop(soft):
    c = call(6, 3, 2, soft=soft, weighted=True, momentum=0.5, dtype=torch.float64)
    function, values = mean_of(c, "cpu")

    def value(*tensors):
        return function(*tensors).square().sum()

    def gradients(*tensors):
        return func_grad(value, argnums=tuple(range(len(tensors))))(*tensors)

    leaves = [t.clone().requires_grad_() for t in values]
    expected = torch.autograd.grad(value(*leaves), leaves)
    together = torch.vmap(gradients)(*(torch.stack([t, t]) for t in values))
    for single, pair, right in zip(gradients(*values), together, expected, strict=True):
        torch.testing.assert_close(single, right, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(pair[1], right, rtol=1e-12, atol=1e-13)


@pytest.mark.once
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_autocast_changes_nothing(soft, backend):
    c = call(20, 5, 8, soft=soft, weighted=True)
    plain = c.results(backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = c.results(backend=backend)
    # A backward inside autocast is PyTorch's own affair where it is PyTorch's own backward.
    for name in ("mean", "count") if backend == "reference" else plain:
        assert torch.equal(plain[name], cast[name]), name


_MEMORY = """
    import resource, torch
    from fedkernels import class_mean
    torch.set_num_threads(2)
    N, K, D = 50_000, 4_000, 8            # an (N, K) matrix would be 800 MB, x is 1.6 MB
    x, labels = torch.randn(N, D).requires_grad_(), torch.arange(N) % K
    weight = torch.rand(N).requires_grad_()
    def run(n):
        found = class_mean(x[:n], labels[:n], K, weight=weight[:n], backend="cpu").mean
        torch.autograd.grad(found.sum(), (x, weight))
    run(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(N)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.once
@needs_extension
def test_no_matrix_of_rows_and_classes():
    """x, its gradient, the order of the rows and a gathered gradient are under 10 MB together."""
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32


ones, zeros = torch.ones, torch.zeros
hard = torch.tensor([0, 1, 2, 0, 1, 2])
BAD = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": ones(5)}, ValueError, r"x must be \(N, D\), got \(5,\)"),
    ({"x": ones(6, 3, dtype=torch.int64)}, TypeError, "x must be float32, .*got torch.int64"),
    ({"x": ones(6, 3).to_sparse()}, TypeError, "x must be a dense .*got torch.sparse_coo"),
    ({"n_classes": 0}, ValueError, "n_classes must be at least 1, got 0"),
    ({"n_classes": 3.0}, TypeError, "n_classes must be an int, got float"),
    ({"n_classes": True}, TypeError, "n_classes must be an int, got bool"),
    ({"labels": [0]}, TypeError, "labels must be a tensor, got list"),
    ({"labels": hard[:5]}, ValueError, r"labels must be \(6,\), or soft \(6, 3\), got \(5,\)"),
    ({"labels": ones(6, 2)}, ValueError, r"labels must be .*got \(6, 2\)"),
    ({"labels": ones(6)}, TypeError, r"labels \(N,\) must be integers, got torch.float32"),
    ({"labels": hard[:, None].expand(6, 3)}, TypeError, "soft labels must be float32"),
    ({"labels": hard.to("meta")}, ValueError, "labels must be on x's device cpu, got meta"),
    ({"labels": hard + 1}, ValueError, r"labels must lie in 0..2, got 3 in row 2"),
    ({"labels": hard - 1}, ValueError, r"labels must lie in 0..2, got -1 in row 0"),
    ({"weight": ones(5)}, ValueError, r"weight must be \(6,\), got \(5,\)"),
    ({"weight": hard}, TypeError, "weight must be float32, .*got torch.int64"),
    ({"weight": -ones(6)}, ValueError, "weight must not be negative or NaN, got -1.0 in row 0"),
    (
        {"weight": torch.tensor([1, 1, 1, torch.nan, 1, -1])},
        ValueError,
        "weight must not be negative or NaN, got nan in row 3",
    ),
    ({"previous": ones(2, 3)}, ValueError, r"previous must be \(3, 3\), got \(2, 3\)"),
    ({"momentum": 0.5}, ValueError, "momentum needs the previous means"),
    ({"momentum": 1.5, "previous": ones(3, 3)}, ValueError, "momentum must be between 0 and 1"),
    ({"momentum": "0", "previous": ones(3, 3)}, TypeError, "momentum must be a number, got str"),
    ({"empty": "nan"}, ValueError, "empty must be one of keep, zero; got 'nan'"),
    ({"backend": "gpu"}, ValueError, "backend must be one of"),
    ({"backend": "cuda"}, BackendUnavailable, "the kernel runs on CUDA"),
]


@pytest.mark.once
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line(change, error, message):
    arguments = {"x": ones(6, 3), "labels": hard, "n_classes": 3, **change}
    with pytest.raises(error, match=message) as caught:
        class_mean(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_info_lists_the_ops():
    for name in ("class_mean", "kmeans"):
        assert [candidate.name for candidate in api.OPS[name]] == [
            "cuda", "cpu", "triton", "reference",
        ]  # fmt: skip
