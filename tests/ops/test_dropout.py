"""Dropout: counter layout, rate, factor, seeds, one mask in forward, backward, recomputation."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fedkernels import triple_lora_delta
from fedkernels.triple_lora import api, reference
from tests.ops.kit import BACKENDS, DTYPES, assert_same_bits, call, needs_extension
from tests.ops.test_reference import WORD, _philox

SEED = -0x1234_5678_9ABC_DEF0


def _kept_and_factor(seed: int, rows: int, columns: int, p: float) -> torch.Tensor:
    """The layout of the specification, element by element, in Python integers."""
    threshold = round(65536 * p)
    factor = torch.zeros(rows, columns, dtype=torch.float64)
    for n in range(rows):
        for d in range(columns):
            words = _philox([d // 8, n & WORD, n >> 32, 0], (seed & WORD, seed >> 32 & WORD))
            word = words[d % 8 // 2]
            part = word >> 16 if d % 2 else word & 0xFFFF
            if part >= threshold:
                factor[n, d] = 65536 / (65536 - threshold)
    return factor


@pytest.fixture
def fixed_seed(monkeypatch):
    monkeypatch.setattr(api, "_draw_seed", lambda x: torch.tensor([SEED]))


def _mask_of(backend: str, rows: int, columns: int, p: float, dtype=torch.float64, **options):
    """dropout(ones): the adapter is the identity, so that y shows the factor of each element."""
    eye = torch.eye(columns, dtype=dtype)
    x = torch.ones(rows, columns, dtype=dtype)
    return triple_lora_delta(
        x, eye, None, eye, dropout_p=p, training=True, backend=backend, **options
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 65536])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 67, 130])
def test_counter_layout(backend, p, columns, fixed_seed):
    expected = _kept_and_factor(SEED, 3, columns, p)
    assert torch.equal(reference.dropout_factor(torch.tensor([SEED]), 3, columns, p), expected)
    torch.testing.assert_close(_mask_of(backend, 3, columns, p), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_counter_runs_over_all_columns_under_in_index(backend, fixed_seed):
    expected = _kept_and_factor(SEED, 4, 50, 0.4)
    index = torch.tensor([1, 3])
    columns = reference.block_columns(index, 16, 50)
    A = torch.eye(50, dtype=torch.float64)[columns].T.contiguous()
    B = torch.eye(50, dtype=torch.float64)
    x = torch.ones(4, 50, dtype=torch.float64)
    y = triple_lora_delta(
        x, A, None, B, in_index=index, block=16, dropout_p=0.4, training=True, backend=backend
    )
    wanted = torch.zeros_like(expected)
    wanted[:, columns] = expected[:, columns]
    torch.testing.assert_close(y, wanted, rtol=1e-15, atol=0)


def test_the_row_number_fills_both_of_its_words():
    n = 2**32 + 5
    words = reference.philox((1, 2), tuple(torch.tensor(v) for v in (0, n & WORD, n >> 32, 0)))
    assert [int(w) for w in words] == _philox([0, 5, 1, 0], (1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_factor(backend, p):
    factor = _mask_of(backend, 400, 96, p)
    threshold = round(65536 * p)
    kept = factor != 0
    assert set(factor[kept].tolist()) == {65536 / (65536 - threshold)}
    # Five standard deviations of the mean of that many coins.
    spread = 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) < spread + 2**-17
    for axis in (0, 1):  # no row and no column is dropped as a whole
        share = kept.double().mean(axis)
        assert float((share - (1 - p)).abs().max()) < 6 * (p * (1 - p) / kept.shape[axis]) ** 0.5


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [True, False])
def test_cpu_and_reference_drop_the_same_elements(dtype, dense, fixed_seed):
    more = {} if dense else {"in_index": torch.tensor([0, 2]), "block": 16}
    width = 40 if dense else 24
    c = call((33,), dtype=dtype, a_width=width, dropout_p=0.5, training=True, **more)
    with_zero = c.train("x")
    # dx of the adapter alone is 0 exactly where the mask is (no base: no other path to x).
    options = {**c.options, "out_features": 24}
    masks = []
    for backend in ("cpu", "reference"):
        t = with_zero.tensors
        y = triple_lora_delta(t["x"], t["A"], t["T"], t["B"], **options, backend=backend)
        masks.append(torch.autograd.grad(y.float().square().sum(), t["x"])[0] != 0)
    assert torch.equal(*masks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_use_one_mask(backend, fixed_seed):
    x = torch.ones(5, 40, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(40, dtype=torch.float64)
    A, B = eye.clone().requires_grad_(), eye.clone().requires_grad_()
    y = triple_lora_delta(x, A, None, B, dropout_p=0.5, training=True, backend=backend)
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), torch.ones_like(y))
    factor = _kept_and_factor(SEED, 5, 40, 0.5)
    torch.testing.assert_close(dx, factor)
    torch.testing.assert_close(dA, factor.sum(0).expand(40, 40))
    torch.testing.assert_close(dB, factor.sum(0).expand(40, 40))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_no_dropout_draws_no_seed(backend, p, training):
    c = call()
    before = torch.get_rng_state()
    y = c.y(dropout_p=p, training=training, backend=backend)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(y, c.y(backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_one_seed_that_manual_seed_repeats(backend):
    c = call()
    torch.manual_seed(5)
    first = c.y(dropout_p=0.5, training=True, backend=backend)
    second = c.y(dropout_p=0.5, training=True, backend=backend)
    torch.manual_seed(5)
    assert torch.equal(first, c.y(dropout_p=0.5, training=True, backend=backend))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropping_everything_leaves_the_base(backend, dtype):
    c = call(dtype=dtype).train("x", "A", "T", "B")
    r = c.results(dropout_p=1.0, training=True, backend=backend)
    base = call(dtype=dtype).train("x")
    base.tensors["B"] = torch.zeros_like(base.tensors["B"])
    assert torch.equal(r["y"], base.y(backend=backend))
    for name in ("A", "T", "B"):
        assert not r[name].any()
    assert torch.equal(r["x"], base.results(backend=backend)["x"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_regenerates_the_mask(backend, reentrant):
    c = call((17,)).train("x", "A", "T", "B")
    torch.manual_seed(11)
    plain = c.y(dropout_p=0.4, training=True, backend=backend)
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(plain, [c.tensors[n] for n in ("x", "A", "T", "B")], grad)

    again = c.train("x", "A", "T", "B")
    torch.manual_seed(11)

    def run(x):
        return again.y(dropout_p=0.4, training=True, backend=backend)

    y = checkpoint(run, again.tensors["x"], use_reentrant=reentrant)
    torch.rand(3)  # the state moves on between forward and recomputation
    y.backward(grad)
    assert torch.equal(y, plain)
    names = ("x", "A", "T", "B")
    actual = {n: again.tensors[n].grad for n in names}
    assert_same_bits(actual, dict(zip(names, expected, strict=True)))
