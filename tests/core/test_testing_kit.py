"""Inputs, cases, poison, timers, the saved-activation meter."""

from __future__ import annotations

import time

import pytest
import torch

import fedkernels
from fedkernels._extension import is_built
from fedkernels.testing import (
    LAYOUTS,
    ROWS,
    SELECT_MIDDLE_CASES,
    TRIPLE_LORA_CASES,
    interleave,
    poisoned_empty,
    random_tensor,
    saved_activations,
    select_middle_inputs,
    speedup,
    triple_lora_inputs,
    with_layout,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 7), (2, 3, 4), (6,), ()])
def test_a_layout_keeps_the_values(shape, layout):
    plain = random_tensor(shape, seed=1)
    laid = random_tensor(shape, seed=1, layout=layout)
    assert laid.shape == plain.shape
    if layout == "expanded" and len(shape) > 1 and shape[0] > 0:
        assert torch.equal(laid, plain[:1].expand(shape))
    else:
        assert torch.equal(laid, plain)


def test_the_layouts_are_what_they_are_called():
    strides = {layout: random_tensor((4, 6), layout=layout).stride() for layout in LAYOUTS}
    assert strides == {
        "contiguous": (6, 1),
        "strided": (12, 2),
        "transposed": (1, 4),
        "padded": (11, 1),
        "expanded": (0, 1),
    }
    assert random_tensor((4, 6), layout="padded").storage_offset() == 3
    assert {0, 1} < set(ROWS)


def test_gaps_between_elements_are_poisoned():
    view = with_layout(torch.zeros(3, 2), "padded")
    assert torch.as_strided(view, (1,), (1,), 5).isnan().all()


def test_an_unknown_layout_is_named():
    with pytest.raises(ValueError, match=r"layout must be one of contiguous, .*'diagonal'"):
        random_tensor((2, 2), layout="diagonal")


def test_values_depend_on_the_seed_alone():
    assert torch.equal(random_tensor((3, 4), seed=5), random_tensor((3, 4), seed=5))
    assert not torch.equal(random_tensor((3, 4), seed=5), random_tensor((3, 4), seed=6))
    wide = random_tensor((3, 4), seed=5, dtype=torch.float64)
    assert torch.equal(random_tensor((3, 4), seed=5, dtype=torch.bfloat16), wide.bfloat16())


@pytest.mark.parametrize("case", TRIPLE_LORA_CASES, ids=lambda case: case.name)
def test_every_triple_lora_case_is_a_valid_call(case):
    inputs = triple_lora_inputs(case)
    y = fedkernels.triple_lora_linear(**inputs, backend="reference")
    assert y.shape == (*case.leading, case.out_features)
    assert y.isfinite().all()


@pytest.mark.parametrize("case", SELECT_MIDDLE_CASES, ids=lambda case: case.name)
def test_every_select_middle_case_is_a_valid_call(case):
    inputs = select_middle_inputs(case)
    T, index = fedkernels.select_middle(**inputs, backend="reference")
    assert T.shape == (*case.leading, case.rank, case.rank)
    assert index.shape == (*case.leading, case.rank**2)


def test_the_special_scores_are_special():
    case = next(case for case in SELECT_MIDDLE_CASES if case.scores == "special")
    scores = select_middle_inputs(case)["scores"]
    assert scores.isnan().any()
    assert (scores == float("inf")).any()
    assert (scores == float("-inf")).any()


def test_case_names_are_unique():
    for cases in (TRIPLE_LORA_CASES, SELECT_MIDDLE_CASES):
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_poison_reaches_every_way_to_an_uninitialised_tensor(dtype):
    like = torch.ones(3, 2, dtype=dtype)
    with poisoned_empty():
        fresh = (
            torch.empty(3, dtype=dtype),
            torch.empty_like(like),
            like.new_empty(4),
            torch.empty_strided((2, 2), (1, 2), dtype=dtype),
            torch.empty(0, dtype=dtype),
        )
        assert all(tensor.isnan().all() for tensor in fresh)
    assert not torch.are_deterministic_algorithms_enabled()


def test_poison_is_lifted_after_an_error():
    with pytest.raises(KeyError), poisoned_empty():
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()


def test_poison_reaches_what_a_compiled_op_allocates():
    # LibTorch's stable ABI allocates through these three ops of the dispatcher.
    aten = torch.ops.aten
    like = torch.ones(3)
    with poisoned_empty():
        assert aten.empty.memory_format([2]).isnan().all()
        assert aten.empty_like.default(like).isnan().all()
        assert aten.new_empty.default(like, [2]).isnan().all()


def test_interleaved_timers_tell_slow_from_fast():
    timings = interleave(
        {"slow": lambda: time.sleep(2e-3), "fast": lambda: time.sleep(2e-4)},
        seconds=0.1,
        min_sample_us=100,
    )
    assert set(timings) == {"slow", "fast"}
    for timing in timings.values():
        assert timing.n >= 5
        assert timing.p20_us <= timing.median_us <= timing.p80_us
    assert timings["slow"].n == timings["fast"].n
    assert timings["slow"].p20_us >= 2000
    assert speedup(timings, of="fast", over="slow") > 2


def test_timers_take_turns_and_begin_with_another_one_each_round():
    calls = []
    interleave(
        {name: (lambda name=name: (calls.append(name), time.sleep(1e-4))) for name in "abc"},
        seconds=0.0,
        min_rounds=3,
        min_sample_us=1,
    )
    assert calls[-9:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_timing_nothing_gives_nothing():
    assert interleave({}) == {}


def test_the_meter_counts_what_backward_keeps():
    x, w = torch.ones(5, 3), torch.ones(2, 3, requires_grad=True)
    with saved_activations(exclude=[w]) as saved:
        y = (x @ w.T).sigmoid()  # keeps x for dw and its own output
    assert sorted(shape for shape, _ in saved.tensors) == [(5, 2), (5, 3)]
    assert saved.elements == 25
    assert saved.bytes == 100
    y.sum().backward()
    assert w.grad is not None


def test_the_meter_counts_one_tensor_once():
    x = torch.ones(4, requires_grad=True)
    with saved_activations() as saved:
        _ = x * x
    assert saved.elements == 4


def test_frozen_a_saves_n_times_r_elements():
    N, r = 37, 4
    x = torch.randn(N, 16)
    weight, A, B = torch.randn(24, 16), torch.randn(r, 16), torch.randn(24, r)
    T = torch.randn(r, r, requires_grad=True)
    with saved_activations(exclude=[weight, A, B, T]) as saved:
        fedkernels.triple_lora_linear(x, weight, A, T, B, backend="auto")
    if is_built():
        assert saved.elements == N * r
