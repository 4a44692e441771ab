"""The same bits from run to run, for every number of threads, whatever the other rows hold."""

from __future__ import annotations

import pytest
import torch

from fedkernels import triple_lora_delta
from fedkernels.testing import poisoned_empty, random_tensor
from tests.ops.kit import (
    BACKENDS,
    DTYPES,
    TENSORS,
    assert_same_bits,
    call,
    needs_extension,
    with_threads,
)

HALVES = (torch.bfloat16, torch.float16)
BLOCKS = {"in_index": torch.tensor([0, 2, 3]), "out_index": torch.tensor([1, 4]), "block": 64}
KINDS = {
    "small": ((21,), 40, 24, 5, {}),
    "one row": ((1,), 300, 200, 8, {}),
    "few rows": ((20,), 300, 520, 8, {}),  # fewer row blocks than threads: panels are split
    "many rows": ((700,), 130, 96, 20, {}),
    "long rows": ((200,), 1300, 40, 4, {}),
    "dropout": ((200,), 130, 96, 8, {"dropout_p": 0.3, "training": True}),
    "blocks": ((200,), 256, 300, 8, {"a_width": 192, "b_width": 108, **BLOCKS}),
}


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_one_two_and_three_threads(kind, dtype):
    leading, d_in, d_out, rank, options = KINDS[kind]
    c = call(leading, d_in, d_out, rank, dtype=dtype, **options)
    names = ("x", "A", "T", "B", "bias")

    def run():
        torch.manual_seed(3)
        return c.train(*names).results(backend="cpu")

    def products():  # by the weight, in float32 and float64: the platform's, not ours
        x, weight = c.tensors["x"], c.tensors["weight"]
        grad = random_tensor((*leading, d_out), dtype=dtype, seed=77)
        return {"y": torch.mm(x, weight.T), "x": torch.mm(grad, weight)}

    first, platform = with_threads(1, run), with_threads(1, products)
    assert_same_bits(with_threads(1, run), first, "run to run")
    for threads in (2, 3):
        actual, other = with_threads(threads, run), with_threads(threads, products)
        if dtype in (torch.float32, torch.float64):
            # Some libraries split a long sum over threads; what is built on it differs with it.
            for name, product in other.items():
                if not torch.equal(product, platform[name]):
                    del actual[name]
        assert {"A", "T", "B", "bias"} <= set(actual)
        assert_same_bits(actual, first, f"{threads} threads")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_from_run_to_run_for_every_gradient(backend):
    for dtype in DTYPES:
        c = call((60,), 130, 96, 8, dtype=dtype)
        first = c.train(*TENSORS).results(backend=backend)
        assert_same_bits(c.train(*TENSORS).results(backend=backend), first)


@needs_extension
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sizes", [(40, 24), (80, 72), (1300, 40), (130, 520)])
def test_the_bits_of_a_row_are_its_own(dtype, sizes):
    """Own product: whatever stands in the other rows, and wherever the row stands."""
    c = call((230,), *sizes, 8, dtype=dtype)
    grad = random_tensor((230, sizes[1]), dtype=dtype, seed=7)
    c = c.train("x")
    whole = c.results(grad, backend="cpu")
    for rows in (slice(0, 16), slice(5, 70), slice(41, 230), slice(100, 117)):
        part = c.train("x")
        part.tensors["x"] = c.tensors["x"].detach()[rows].clone().requires_grad_()
        some = part.results(grad[rows], backend="cpu")
        assert_same_bits(some, {n: t[rows] for n, t in whole.items()}, rows)
    order = torch.randperm(230)
    moved = c.train("x")
    moved.tensors["x"] = c.tensors["x"].detach()[order].requires_grad_()
    shuffled = moved.results(grad[order], backend="cpu")
    assert_same_bits(shuffled, {n: t[order] for n, t in whole.items()})


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_row_of_the_delta_are_its_own(dtype):
    c = call((230,), 80, 72, 8, dtype=dtype)
    t = c.tensors
    base = random_tensor((230, 72), dtype=dtype, seed=4)

    def run(rows):
        return triple_lora_delta(
            t["x"][rows], t["A"], t["T"], t["B"], base=base[rows], backend="cpu"
        )

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(5, 70), slice(229, 230)):
        assert torch.equal(run(rows), whole[rows])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", [*KINDS, "rank 0", "no rows", "empty blocks", "empty blocks, dropout", "all dropped"]
)
def test_poisoned_memory_leaves_no_nan(kind, dtype, backend):
    nothing = torch.tensor([], dtype=torch.int64)
    none_active = {"in_index": nothing, "a_width": 0, "out_index": nothing, "b_width": 0}
    more = {
        # No active column is not the same as no index: every column.
        "empty blocks, dropout": (
            (9,), 40, 24, 5, {**none_active, "dropout_p": 0.3, "training": True}
        ),
        "all dropped": ((9,), 40, 24, 5, {**none_active, "dropout_p": 1.0, "training": True}),
        "rank 0": ((9,), 40, 24, 0, {}),
        "no rows": ((0,), 40, 24, 5, {}),
        "empty blocks": ((9,), 40, 24, 5, none_active),
    }  # fmt: skip
    leading, d_in, d_out, rank, options = {**KINDS, **more}[kind]
    c = call(leading, d_in, d_out, rank, dtype=dtype, **options).train(*TENSORS)
    t = c.tensors
    with poisoned_empty():
        results = c.results(backend=backend)
        options = {**c.options, "out_features": d_out}
        results["delta"] = triple_lora_delta(
            t["x"], t["A"], t["T"], t["B"], backend=backend, **options
        )
        for name in ("x", "A", "T", "B"):  # each gradient alone: other branches of backward
            results[f"{name} alone"] = c.train(name).results(backend=backend)[name]
    assert all(bool(value.isfinite().all()) for value in results.values())
