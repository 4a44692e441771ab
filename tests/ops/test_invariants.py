"""What the mathematics promises, and the layer that is built on the ops."""

from __future__ import annotations

import pytest
import torch

from fedkernels import TripleLoraLinear, fold_middle, triple_lora_delta, triple_lora_linear
from fedkernels.testing import assert_within_budget, random_tensor
from tests.ops.kit import BACKENDS, DTYPES, TENSORS, Call, assert_same_bits, call

# 40 x 24 weights run on the own product whatever the dtype; 80 x 72 do in half types alone.
SIZES = [((21,), 40, 24, 5), ((21,), 80, 72, 5), ((3,), 80, 72, 5)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_b_zero_or_scale_zero_is_the_base_bit_for_bit(size, dtype, backend):
    c = call(*size, dtype=dtype)
    if backend == "reference":
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        t = {n: c.tensors[n].to(wide) for n in ("x", "weight", "bias")}
        base = (t["x"] @ t["weight"].T + t["bias"]).to(dtype)
    else:
        empty = call(*size[:3], 0, dtype=dtype)  # rank 0: no adapter at all
        base = empty.y(backend=backend)
    zero = Call({**c.tensors, "B": torch.zeros_like(c.tensors["B"])}, c.options)
    assert torch.equal(zero.y(backend=backend), base)
    assert torch.equal(c.y(scale=0.0, backend=backend), base)
    t = c.tensors
    held = random_tensor(base.shape, dtype=dtype, seed=5)
    y = triple_lora_delta(t["x"], t["A"], t["T"], zero.tensors["B"], base=held, backend=backend)
    assert torch.equal(y, held)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_t_zero_is_plain_lora_and_residual_is_t_plus_i(dtype, backend):
    c = call((21,), dtype=dtype)
    names = ("x", "weight", "A", "B", "bias")
    plain = Call({**c.tensors, "T": None}, c.options).train(*names)
    zero = Call({**c.tensors, "T": torch.zeros_like(c.tensors["T"])}, c.options).train(*names)
    assert_same_bits(zero.results(backend=backend), plain.results(backend=backend))
    assert torch.equal(plain.y(residual=False, backend=backend), plain.y(backend=backend))

    # Middles whose sum with I is exact in every dtype.
    T = (c.tensors["T"] * 4).round() / 4
    c.tensors["T"] = T
    sum_ = Call({**c.tensors, "T": T + torch.eye(5, dtype=dtype)}, c.options)
    with_residual = c.train(*TENSORS).results(residual=True, backend=backend)
    without = sum_.train(*TENSORS).results(residual=False, backend=backend)
    assert_same_bits(with_residual, without)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_is_linear_and_a_power_of_two_is_exact(backend):
    c = call((21,))
    t = c.tensors
    one = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], scale=1.0, backend=backend)
    four = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], scale=-4.0, backend=backend)
    assert torch.equal(four, -4 * one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [False, True])
def test_fold_middle_is_the_same_adapter_with_two_factors(residual, backend):
    c = call((21,), dtype=torch.float64, residual=residual)
    t = c.tensors
    Q = fold_middle(t["B"], t["T"], residual=residual)
    folded = triple_lora_linear(
        t["x"], t["weight"], t["A"], None, Q, bias=t["bias"], scale=0.5, backend=backend
    )
    torch.testing.assert_close(folded, c.y(backend=backend), rtol=1e-12, atol=1e-13)


def _layer(dtype: torch.dtype, backend: str, bias: bool = True, **options) -> TripleLoraLinear:
    base = torch.nn.Linear(40, 24, bias=bias).to(dtype)
    layer = TripleLoraLinear(base, 5, backend=backend, **options)
    torch.nn.init.normal_(layer.T, std=0.3)
    torch.nn.init.normal_(layer.B, std=0.2)
    return layer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_merged_layer_equals_the_layer_within_budget(bias, dtype, backend):
    layer = _layer(dtype, backend, bias)
    x = random_tensor((30, 40), dtype=dtype)
    merged = layer.merged()
    assert type(merged) is torch.nn.Linear and merged.weight.dtype == dtype
    parameters = {n: p.detach().double() for n, p in layer.named_parameters()}
    W = parameters["base.weight"] + layer.scale * (
        parameters["B"] @ (parameters["T"] + torch.eye(5)) @ parameters["A"]
    )
    # The merged weight is what merging has to get right: it rounds to the base's dtype once.
    assert_within_budget(merged.weight.detach(), W.to(dtype), W, name="weight")
    exact = x.double() @ merged.weight.double().T
    if bias:
        exact = exact + parameters["base.bias"]
    assert_within_budget(merged(x).detach(), exact.to(dtype), exact, name="merged")
    if dtype == torch.float32:
        torch.testing.assert_close(merged(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_new_layer_does_what_its_base_does(dtype, backend):
    base = torch.nn.Linear(40, 24).to(dtype)
    layer = TripleLoraLinear(base, 5, dropout_p=0.5, backend=backend)
    assert layer.base is base and not base.weight.requires_grad
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for n, p in layer.named_parameters() if "base" not in n} == {wide}
    assert not layer.T.any() and not layer.B.any() and layer.A.any()
    assert float(layer.A.detach().abs().max()) <= (1 / 40) ** 0.5  # Kaiming-uniform with a = sqrt 5
    assert layer.scale == 16 / 5
    x = random_tensor((30, 40), dtype=dtype)
    exact = x.double() @ base.weight.double().T + base.bias.double()
    narrow = (x.to(wide) @ base.weight.to(wide).T + base.bias.to(wide)).to(dtype)
    assert_within_budget(
        layer(x).detach(), narrow.detach(), exact.detach(), sum_length=40, name="y"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_phases_train_what_they_name(backend):
    layer = _layer(torch.float32, backend)
    x = random_tensor((9, 40))
    expected = {"all": {"A", "T", "B"}, "shared": {"T"}, "private": {"A", "B"}, "frozen": set()}
    for phase, names in expected.items():
        layer.set_phase(phase)
        layer.zero_grad()
        y = layer(x)
        assert y.requires_grad == bool(names)
        if names:
            y.square().sum().backward()
        assert {n for n, p in layer.named_parameters() if p.grad is not None} == names
    with pytest.raises(ValueError, match=r"phase must be one of all, shared, .*got 'both'"):
        layer.set_phase("both")


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_the_layer_follows_train_and_eval(backend):
    layer = _layer(torch.float32, backend, dropout_p=0.5)
    x = random_tensor((9, 40))
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_steps_learn(backend):
    layer = _layer(torch.float32, backend)
    x = random_tensor((64, 40), seed=1)
    target = random_tensor((64, 24), seed=2)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=1e-2)
    weight = layer.base.weight.clone()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(layer.base.weight, weight)


def test_the_layer_in_a_state_dict():
    layer = _layer(torch.float32, "reference")
    keys = {"A", "T", "B", "base.weight", "base.bias"}
    assert set(layer.state_dict()) == keys
    other = _layer(torch.float32, "reference")
    other.load_state_dict(layer.state_dict())
    x = random_tensor((3, 40))
    assert torch.equal(other(x), layer(x))
