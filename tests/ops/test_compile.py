"""opcheck of every op; torch.compile without a graph break, equal to eager, no recompilation."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fedkernels import TripleLoraLinear, select_middle, triple_lora_delta
from fedkernels.testing import random_tensor
from fedkernels.triple_lora import ops
from tests.ops.kit import CPU, TENSORS, Call, assert_same_bits, call, needs_extension

pytestmark = [needs_extension, pytest.mark.once]
ALL = ops.NEED_X | ops.NEED_A | ops.NEED_T | ops.NEED_B | ops.NEED_WEIGHT | ops.NEED_BIAS
SEED = torch.tensor([42])


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _forward_arguments(kind: str, dtype: torch.dtype) -> tuple:
    leading = {"vector": (), "empty": (0,), "batched": (2, 3)}.get(kind, (9,))
    sparse = kind == "sparse"
    c = call(leading, dtype=dtype, a_width=24 if sparse else 40, b_width=8 if sparse else 24)
    t = c.tensors
    return (
        t["x"], None if kind == "delta" else t["weight"], None if kind == "delta" else t["bias"],
        random_tensor((9, 24), dtype=dtype) if kind == "delta" else None, t["A"],
        None if kind == "plain" else t["T"], t["B"],
        torch.tensor([0, 2]) if sparse else None, torch.tensor([1]) if sparse else None,
        SEED if kind == "dropout" else None, 16, 24, 0.5, True, 0.5 if kind == "dropout" else 0.0,
    )  # fmt: skip


KINDS = ("dense", "plain", "delta", "sparse", "dropout", "vector", "batched", "empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_of_forward_and_backward(kind, dtype):
    forward = _forward_arguments(kind, dtype)
    torch.library.opcheck(ops.triple_lora_forward, forward)
    y, h = ops.triple_lora_forward(*forward)
    x, weight, _, _, A, T, B, in_index, out_index, seed, block, _, scale, residual, p = forward
    for need in (ALL, ops.NEED_T, ops.NEED_X, 0):
        need &= ~(ops.NEED_WEIGHT if weight is None else 0)
        torch.library.opcheck(
            ops.triple_lora_backward,
            (
                torch.ones_like(y), x, h, weight, A, T, B, in_index, out_index, seed, block,
                x.shape[-1], scale, residual, p, need,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_opcheck_of_the_selection(leading, dtype):
    scores = random_tensor((*leading, 6, 6), dtype=dtype, seed=1)
    middle = random_tensor((*leading, 6, 6), dtype=dtype, seed=2)
    index = ops.select_index(scores, 2, None)
    T = ops.gather_middle(middle, index, 2)
    torch.library.opcheck(ops.select_index, (scores, 2, None))
    torch.library.opcheck(ops.select_index, (scores, 2, index))
    torch.library.opcheck(ops.gather_middle, (middle, index, 2))
    torch.library.opcheck(ops.scatter_middle, (T, None, index, 6))
    torch.library.opcheck(ops.scatter_middle, (T, middle, index, 6))


def test_the_fake_of_an_empty_input_dimension():
    arguments = list(_forward_arguments("dense", torch.float32))
    arguments[0], arguments[1], arguments[4] = torch.ones(9, 0), torch.ones(24, 0), torch.ones(5, 0)
    torch.library.opcheck(ops.triple_lora_forward, tuple(arguments))


OPTIONS = {
    "dense": {},
    "plain": {"plain": True},
    "sparse": {
        "in_index": torch.tensor([0, 1]), "out_index": torch.tensor([1]), "block": 8,
        "a_width": 16, "b_width": 8,
    },
    "vector": {"leading": ()},
    "batched": {"leading": (2, 3)},
}  # fmt: skip


# One case of inductor is enough: it compiles for seconds.
@pytest.mark.parametrize(
    ("kind", "backend"), [*((kind, "aot_eager") for kind in OPTIONS), ("dense", "inductor")]
)
def test_compiled_equals_eager(kind, backend):
    options = dict(OPTIONS[kind])
    c = call(options.pop("leading", (9,)), **options)
    names = [n for n in TENSORS if c.tensors[n] is not None]
    c = c.train(*names)

    def run(tensors):
        return Call(tensors, c.options).y(backend="cpu")

    y = torch.compile(run, fullgraph=True, backend=backend)(c.tensors)
    grad = random_tensor(y.shape, seed=77)
    grads = torch.autograd.grad(y, [c.tensors[n] for n in names], grad)
    actual = {"y": y.detach(), **dict(zip(names, grads, strict=True))}
    assert_same_bits(actual, c.results(grad, backend="cpu"))


def test_compiled_dropout_draws_in_the_graph():
    layer = TripleLoraLinear(torch.nn.Linear(40, 24), 5, dropout_p=0.5, backend="cpu")
    torch.nn.init.normal_(layer.B)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = random_tensor((9, 40))
    torch.manual_seed(1)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)  # aot_eager runs torch's own randint
    layer.eval()
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("train", [("T",), ("A", "B"), ("x", "A", "T", "B")])
def test_a_second_batch_size_costs_one_dynamic_graph_and_no_more(train):
    counter = CompileCounterWithBackend("aot_eager")
    c = call((9,)).train(*train)

    def run(x):
        return Call({**c.tensors, "x": x}, c.options).y(backend="cpu")

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for rows, most in ((9, 1), (9, 1), (33, 2), (50, 2), (7, 2), (128, 2), (9, 2)):
        x = random_tensor((rows, 40), requires_grad="x" in train)
        y = compiled(x)
        assert torch.equal(y, run(x))
        y.sum().backward()
        assert counter.frame_count <= most, rows


def test_marked_dynamic_compiles_once():
    counter = CompileCounterWithBackend("aot_eager")
    layer = TripleLoraLinear(torch.nn.Linear(40, 24), 5, backend="cpu")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for rows in (9, 33, 50):
        x = random_tensor((rows, 40))
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1


def test_compiled_delta_and_selection():
    c = call((9,)).train("x", "A", "T", "B")
    base = random_tensor((9, 24), seed=6, requires_grad=True)
    middle = random_tensor((3, 8, 8), seed=1, requires_grad=True)
    scores = random_tensor((3, 8, 8), seed=2, requires_grad=True)

    def run():
        t = c.tensors
        y = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], base=base, backend="cpu")
        T, index = select_middle(middle, scores, 5, backend="cpu")
        again, _ = select_middle(middle, scores, 5, index=index, backend="cpu")
        kept, moved = select_middle(middle, scores * 2, 5, previous=index, backend="cpu")
        return y, T, again, kept, index, moved

    leaves = [c.tensors[n] for n in ("x", "A", "T", "B")] + [base, middle, scores]
    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        out = function()
        total = sum((i + 1.5) * t.square().sum() for i, t in enumerate(out[:4]))
        results.append((*out, *torch.autograd.grad(total, leaves)))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("backend", [CPU])
def test_compiled_autocast(backend):
    c = call((20,)).train("x", "A", "T", "B")

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return c.y(backend=backend)

    y = torch.compile(run, fullgraph=True, backend="aot_eager")()
    assert y.dtype == torch.bfloat16 and torch.equal(y, run())
    y.float().sum().backward()
    assert c.tensors["A"].grad.dtype == torch.float32


def test_a_wrong_index_in_compiled_code_raises():
    c = call((9,), a_width=16, in_index=torch.tensor([9]), block=16)
    with pytest.raises((ValueError, RuntimeError), match="in_index"):
        torch.compile(lambda: c.y(backend="cpu"), backend="aot_eager")()
