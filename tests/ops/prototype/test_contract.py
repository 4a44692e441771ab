"""Prototypes as ops: gradcheck, opcheck, compile, torch.func, second derivatives, memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad as func_grad

import fedkernels
from fedkernels import prototype_cross_entropy
from fedkernels.prototype import ops
from fedkernels.testing import random_tensor
from tests.ops.kit import assert_same_bits
from tests.ops.prototype.kit import (
    LEAVES,
    METRICS,
    OUTPUTS,
    backends,
    call,
    needs_kernel,
    upstream_of,
)

FUNCTIONS = tuple(OUTPUTS)
REFUSED = 'no second derivative; pass backend="reference"'
needs_all = needs_kernel(*FUNCTIONS)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)


def small(function, metric="sqeuclidean", **more):
    options = {"assign": {"nearest": 2}, "cross_entropy": {"weighted": True}}.get(function, {})
    return call(function, 7, 4, 3, metric=metric, dtype=torch.float64, **{**options, **more})


def leaves_of(c):
    return [n for n in LEAVES if c.tensors.get(n) is not None]


def as_function(c, backend, **more):
    """The outputs that have a gradient, as a function of the leaves."""
    names = leaves_of(c)

    def function(*values):
        found = c.change(**dict(zip(names, values, strict=True))).outputs(backend=backend, **more)
        return tuple(found.values())

    return function, names


@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradcheck(function, metric, backend):
    variants = [{}]
    if function in ("softmax", "cross_entropy"):
        variants = [{"mask": "rows"}, {"mask": "shared", "prior": False}]
    if function == "cross_entropy":
        variants = [{**v, "reduction": r} for v, r in zip(variants, ("none", "sum"), strict=True)]
        variants += [{"soft": True}]
    for more in variants:
        c = small(function, metric, **more)
        if function == "softmax" and "mask" in c.tensors:
            c.tensors["mask"][..., 0] = True  # lse is finite
        run, names = as_function(c, backend)
        values = [c.tensors[n].requires_grad_() for n in names]
        assert torch.autograd.gradcheck(run, values), more


FAKE = ("test_schema", "test_faketensor")


@needs_all
@pytest.mark.once
@pytest.mark.parametrize("size", [(9, 5, 4), (0, 3, 2), (3, 1, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype, size):
    op = ops.primitives("cpu")
    n, k, d = size
    # Under AOT dispatch, which takes seconds, the one size and dtype that say most.
    whole = dtype == torch.bfloat16 and n == 9
    tests = {} if whole else {"test_utils": FAKE}

    def check(function, *arguments):
        torch.library.opcheck(function, arguments, **tests)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, mu = random_tensor((n, d), dtype=dtype, seed=1), random_tensor((k, d), dtype=wide)
    prior, rows = random_tensor((k,), dtype=wide), random_tensor((n,), dtype=wide)
    mask = torch.ones(n, k, dtype=torch.bool)
    grad = random_tensor((n, k), dtype=wide)
    check(op.prototype_distance, x, mu, 1)
    distance = op.prototype_distance(x, mu, 1)
    for need in (3,) if whole else range(4):
        check(op.prototype_distance_backward, x, mu, distance, grad, 1, need)
    check(op.prototype_assign, x, mu, None, 0, 2)
    check(op.prototype_assign, x, mu, mask, 2, 7)
    for want in (False, True):
        check(op.prototype_softmax, x, mu, prior, mask[:1].contiguous(), 0, 0.5, want)
    lse = op.prototype_softmax(x, mu, prior, mask, 0, 0.5, False)[1]
    for upstream in ((grad, rows, prior), (None, rows, None), (None, None, prior)):
        check(op.prototype_softmax_backward, x, mu, prior, mask, lse, *upstream, 0, 0.5, 7)
    hard = torch.zeros(n, dtype=torch.int64)
    for target, weight, reduction, need in (
        (hard, None, 0, 0),
        (hard, None, 2 if n else 1, 3),
        (grad, rows, 1, 7),
        (hard, rows, 1, 2),
    ):
        check(
            op.prototype_cross_entropy, x, mu, target, prior, mask, prior.abs(), weight,
            0, 0.5, -100, reduction, need,
        )  # fmt: skip


@needs_all
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_is_eager_and_a_second_size_costs_one_graph(function):
    counter = CompileCounterWithBackend("aot_eager")
    more = {"prior": True} if function in ("softmax", "cross_entropy") else {}
    first = call(function, 9, 5, 4, **more)
    names = leaves_of(first)

    def run(target, mask, *values):
        tensors = dict(zip(names, values, strict=True))
        tensors |= {n: t for n, t in (("target", target), ("mask", mask)) if t is not None}
        return tuple(first.__class__(function, tensors, first.options).outputs(
            backend="cpu").values())  # fmt: skip

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for seed, (rows, most) in enumerate(((9, 1), (9, 1), (33, 2), (50, 2), (7, 2))):
        c = call(function, rows, 5, 4, seed=seed, mask="rows", **more).train()
        c.tensors.setdefault("target", None)
        values = [c.tensors[n] for n in names]
        mask = None if function == "distance" else c.tensors["mask"]
        found = []
        for which in (run, compiled):
            outputs = which(c.tensors["target"], mask, *values)
            total = sum(torch.where(t.isfinite(), t, 0).square().sum() for t in outputs)
            grads = torch.autograd.grad(total, values)
            found.append((*(t.detach() for t in outputs), *grads))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), rows
        assert counter.frame_count <= most, rows


@needs_all
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_second_derivative_is_refused(function):
    variants = [{}]
    if function == "cross_entropy":
        variants = [{"reduction": r} for r in ("none", "mean")]
    for more in variants:
        c = small(function, **more).train()
        run, names = as_function(c, "cpu")
        values = [c.tensors[n] for n in names]
        # Of the outputs' sum alone, the upstream gradient has no history of its own.
        grads = torch.autograd.grad(sum(t.sum() for t in run(*values)), values, create_graph=True)
        for g in grads:
            for second in values:
                with pytest.raises(RuntimeError, match=REFUSED):
                    torch.autograd.grad(g.sum(), second, retain_graph=True)

        def value(t, run=run, values=values):
            return sum(o.sum() for o in run(t, *(v.detach() for v in values[1:])))

        with pytest.raises(RuntimeError, match=REFUSED):
            func_grad(lambda t, f=value: func_grad(f)(t).sum())(values[0].detach())


@pytest.mark.once
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_reference_has_a_second_derivative(function):
    c = call(function, 4, 3, 2, dtype=torch.float64)
    run, names = as_function(c, "reference")
    assert torch.autograd.gradgradcheck(run, [c.tensors[n].requires_grad_() for n in names])


@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_transforms_are_autograd_and_a_loop(function, backend):
    calls = [small(function, seed=s, prior=False) for s in range(3)]
    names = leaves_of(calls[0])
    run, _ = as_function(calls[0], backend)

    def value(*tensors):
        return sum(o.square().sum() for o in run(*tensors))

    stacked = [torch.stack([c.tensors[n] for c in calls]) for n in names]
    together = torch.vmap(func_grad(value, argnums=tuple(range(len(names)))))(*stacked)
    for b in range(3):
        leaves = [t[b].clone().requires_grad_() for t in stacked]
        for a, g in zip(together, torch.autograd.grad(value(*leaves), leaves), strict=True):
            torch.testing.assert_close(a[b], g, rtol=1e-11, atol=1e-12)


@needs_all
def test_compiled_transforms_are_refused():
    c = small("cross_entropy")
    run, names = as_function(c, "cpu")
    rest = [c.tensors[n] for n in names[1:]]
    compiled = torch.compile(
        func_grad(lambda x: run(x, *rest)[0]), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=r"torch\.func transforms inside torch\.compile"):
        compiled(c.tensors["x"])


@needs_all
@pytest.mark.parametrize("function", FUNCTIONS)
def test_autocast_changes_nothing(function):
    c = call(function, 20, 5, 8)
    plain = c.results(backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(c.results(backend="cpu"), plain)
        found = c.outputs(backend="reference")
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)


@needs_all
@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_the_gradients_that_are_asked_for(function):
    c = call(function, 130, 9, 6)
    whole = c.results(backend="cpu")
    for name in leaves_of(c):
        some = c.train(name)
        outputs = some.outputs(backend="cpu")
        upstream = [upstream_of(n, t) for n, t in outputs.items()]
        (found,) = torch.autograd.grad(list(outputs.values()), some.tensors[name], upstream)
        assert_same_bits({name: found}, {name: whole[f"d{name}"]})


@needs_all
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_does_not_keep_x(reduction):
    c = call("cross_entropy", 50, 5, 4, reduction=reduction).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        c.run(backend="cpu")
    assert not any(t.data_ptr() == c.tensors["x"].data_ptr() for t in kept if t.numel())


@needs_all
def test_distances_may_be_changed_in_place():
    """Dots; the others are read again by their backward, which says so if they were changed."""
    c = call("distance", 20, 5, 8, metric="dot").train()
    logits = c.run(backend="cpu").neg_().mul_(2)
    grads = torch.autograd.grad(logits.sum(), [c.tensors[n] for n in LEAVES[:2]])
    whole = torch.autograd.grad(c.run(backend="cpu").sum(), [c.tensors[n] for n in LEAVES[:2]])
    for a, b in zip(grads, whole, strict=True):
        torch.testing.assert_close(a, -2 * b)


@needs_all
def test_points_that_are_their_own_prototypes():
    x = random_tensor((12, 4), seed=1, requires_grad=True)
    (dx,) = torch.autograd.grad(
        fedkernels.prototype_distance(x, x, metric="euclidean", backend="cpu").sum(), x
    )
    y = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(torch.cdist(y, y).sum(), y)
    torch.testing.assert_close(dx.double(), exact, rtol=1e-5, atol=1e-5)


_MEMORY = """
    import resource, torch
    from fedkernels import prototype_assign, prototype_cross_entropy, prototype_softmax
    torch.set_num_threads(2)
    N, K, D = 50_000, 2_000, 16           # a matrix of pairs would be 400 MB
    x, mu = torch.randn(N, D).requires_grad_(), torch.randn(K, D).requires_grad_()
    target = torch.arange(N) % K

    def all_of_it(x, target):
        loss = prototype_cross_entropy(x, mu, target, backend="cpu")
        soft = prototype_softmax(x, mu, return_prob=False, backend="cpu")
        near = prototype_assign(x, mu, k=2, backend="cpu")
        total = loss + soft.mass.square().sum() + soft.lse.sum() + near.distance.sum()
        torch.autograd.grad(total, (x, mu))

    all_of_it(x[:100], target[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    all_of_it(x, target)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@needs_all
def test_no_matrix_of_pairs():
    """Gradients are 3 MB each, the pairs found 6 MB; the rest is scratch and the allocator's."""
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


@needs_all
def test_a_compiled_label_out_of_range_is_nan():
    x, mu = random_tensor((9, 4), seed=1), random_tensor((3, 4), seed=2)

    def run(target):
        return prototype_cross_entropy(x, mu, target, reduction="none", backend="cpu")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    target = torch.arange(9) % 3
    target[4] = 3
    found = compiled(target)
    assert found.isnan().nonzero().flatten().tolist() == [4]
