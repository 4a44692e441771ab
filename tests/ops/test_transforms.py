"""torch.func, vmap, autocast, inference mode: equal to plain loops and casts."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, vmap

from fedkernels import TripleLoraLinear, select_middle, triple_lora_delta, triple_lora_linear
from fedkernels.testing import random_tensor
from tests.ops.kit import BACKENDS, CPU, TENSORS, assert_same_bits, call, needs_extension

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _no_warning_of_the_slow_batching():
    # A warning that waits while the op raises turns the op's error into a SystemError.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TENSORS)
def test_func_grad_is_autograd(name, backend):
    c = call((9,), dtype=torch.float64)
    expected = c.train(name)
    (wanted,) = torch.autograd.grad(
        expected.y(backend=backend).square().sum(), expected.tensors[name]
    )

    def value(t):
        tensors = {**c.tensors, name: t}
        return triple_lora_linear(**tensors, **c.options, backend=backend).square().sum()

    torch.testing.assert_close(grad(value)(c.tensors[name]), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [("x",), ("A",), ("T",), ("B",), ("weight", "bias"), ("x", "T")])
def test_vmap_is_a_loop(names, backend):
    c = call((9,), dtype=torch.float64)
    stacks = [torch.stack([c.tensors[n] * factor for factor in (1.0, -0.5, 2.0)]) for n in names]

    def one(*values):
        tensors = {**c.tensors, **dict(zip(names, values, strict=True))}
        return triple_lora_linear(**tensors, **c.options, backend=backend)

    actual = vmap(one)(*stacks)
    expected = torch.stack([one(*values) for values in zip(*stacks, strict=True)])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    def gradients(*values):
        return grad(lambda *v: one(*v).square().sum(), argnums=tuple(range(len(names))))(*values)

    per_sample = vmap(gradients)(*stacks)
    loop = [gradients(*values) for values in zip(*stacks, strict=True)]
    for i, value in enumerate(per_sample):
        wanted = torch.stack([g[i] for g in loop])
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample_gradients_of_the_layer(backend):
    layer = TripleLoraLinear(torch.nn.Linear(6, 4).double(), 2, backend=backend).double()
    torch.nn.init.normal_(layer.B)
    x = random_tensor((5, 6), dtype=torch.float64)
    factors = {n: p.detach() for n, p in layer.named_parameters() if n in ("A", "T", "B")}

    def loss(factors, row):
        return functional_call(layer, factors, (row,)).square().sum()

    actual = vmap(grad(loss), in_dims=(None, 0))(factors, x)
    for i, row in enumerate(x):
        for name, value in grad(loss)(factors, row).items():
            torch.testing.assert_close(actual[name][i], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_delta_and_selection_under_vmap(backend):
    c = call((4,), dtype=torch.float64)
    x = random_tensor((3, 4, 40), dtype=torch.float64)
    t = c.tensors
    base = random_tensor((3, 4, 24), dtype=torch.float64)

    def delta(x, base):
        return triple_lora_delta(x, t["A"], t["T"], t["B"], base=base, backend=backend)

    expected = torch.stack([delta(*pair) for pair in zip(x, base, strict=True)])
    torch.testing.assert_close(vmap(delta)(x, base), expected, rtol=1e-12, atol=1e-12)

    middle, scores = (random_tensor((3, 5, 5), dtype=torch.float64, seed=s) for s in (1, 2))

    def chosen(m, s):
        return select_middle(m, s, 2, backend=backend)

    for actual, wanted in zip(vmap(chosen)(middle, scores), chosen(middle, scores), strict=True):
        assert torch.equal(actual, wanted)

    def score_gradient(m, s):
        return grad(lambda s: chosen(m, s)[0].square().sum())(s)

    loop = torch.stack([score_gradient(*pair) for pair in zip(middle, scores, strict=True)])
    assert torch.equal(vmap(score_gradient)(middle, scores), loop)


@needs_extension
def test_a_wrong_index_under_a_transform_raises_and_reads_nothing_beside_the_tensor():
    """There the checks of eager mode cannot look at the contents of an index."""
    c = call((4,), 40, 24, 2, a_width=16, block=16)
    for wrong in ([7], [-1], [2]):  # 2 is the short block: narrower than what A stores
        index = torch.tensor(wrong)
        with pytest.raises((ValueError, RuntimeError), match="in_index"):
            vmap(lambda x, i=index: triple_lora_linear(
                **{**c.tensors, "x": x}, in_index=i, block=16, backend="cpu"
            ))(c.tensors["x"])  # fmt: skip
    middle = random_tensor((2, 3, 3))
    for wrong in (9, -1, 2**40):
        index = torch.full((2, 1), wrong)
        with pytest.raises((ValueError, RuntimeError), match="index must lie"):
            grad(lambda m, i=index: select_middle(m, None, 1, index=i, backend="cpu")[0].sum())(
                middle
            )
        with pytest.raises((ValueError, RuntimeError), match="previous must lie"):
            vmap(lambda m, p=index: select_middle(m, m, 1, previous=p[0], backend="cpu")[0])(middle)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_is_a_cast_of_the_inputs(half, backend):
    c = call((20,)).train(*TENSORS)
    with torch.autocast("cpu", half):
        y = c.y(backend=backend)
    assert y.dtype == half
    upstream = random_tensor(y.shape, dtype=half, seed=3)
    grads = torch.autograd.grad(y, [c.tensors[n] for n in TENSORS], upstream)
    assert [g.dtype for g in grads] == [torch.float32] * len(TENSORS)

    cast = call((20,))
    for name in ("x", "weight", "bias"):
        cast.tensors[name] = cast.tensors[name].to(half)
    expected = cast.train(*TENSORS).results(upstream, backend=backend)
    actual = {"y": y.detach(), **dict(zip(TENSORS, grads, strict=True))}
    for name in ("weight", "bias") if backend == "cpu" else ():
        expected[name] = expected[name].float()
    # The adapters stay float32 in both; x's gradient comes back in float32.
    expected["x"] = expected["x"].float()
    if backend == "reference":  # differentiates through the cast: gradients are rounded to half
        for name in ("weight", "bias"):
            expected[name] = expected[name].float()
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_takes_an_input_that_is_half_already_and_a_mixed_gradient(backend):
    c = call((20,), dtype=torch.float32)
    c.tensors["x"] = c.tensors["x"].bfloat16()
    c = c.train("x", "A", "T", "B")
    with torch.autocast("cpu", torch.bfloat16):
        y = c.y(backend=backend)
        (dA,) = torch.autograd.grad(y.float().sum(), c.tensors["A"])  # backward under autocast
    assert y.dtype == torch.bfloat16 and dA.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_float64_alone(backend):
    c = call((5,), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(c.y(backend=backend), c.y(backend=backend))
        assert c.y(backend=backend).dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_delta_under_autocast(backend):
    c = call((20,))
    t = c.tensors
    base = random_tensor((20, 24), seed=4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], base=base, backend=backend)
    assert y.dtype == torch.bfloat16
    (dbase,) = torch.autograd.grad(y.float().sum(), base)
    assert dbase.dtype == torch.float32 and bool((dbase == 1).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_and_no_grad(backend):
    c = call((9,)).train(*TENSORS)
    expected = c.y(backend=backend).detach()
    with torch.inference_mode():
        y = c.y(backend=backend)
        assert y.is_inference() and torch.equal(y, expected)
        m = random_tensor((3, 5, 5))
        T, index = select_middle(m, m, 2, backend=backend)
        assert T.is_inference() and index.is_inference()
    with torch.no_grad():
        y = c.y(backend=backend)
    assert not y.requires_grad and torch.equal(y, expected)
    with torch.inference_mode():
        inputs = call((9,)).tensors["x"].clone()
    c = call((9,))
    c.tensors["x"] = inputs
    assert torch.equal(c.y(backend=backend), expected)


@pytest.mark.parametrize("backend", [CPU])
def test_forward_mode_is_refused_by_name(backend):
    c = call((4,))
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(
            lambda x: triple_lora_linear(**{**c.tensors, "x": x}, backend=backend),
            (c.tensors["x"],),
            (c.tensors["x"],),
        )
