"""The error budget passes what is right and fails what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedkernels.testing import (
    assert_within_budget,
    error_budget,
    long_double,
    random_tensor,
    reference_pair,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def product(x, w):
    return x @ w


@pytest.fixture(params=DTYPES, ids=str)
def case(request):
    """(a second right result, reference, exact) of a product (60, 96) x (96, 40)."""
    dtype = request.param
    x = random_tensor((60, 96), dtype=dtype, seed=1)
    w = random_tensor((96, 40), dtype=dtype, seed=2)
    reference, exact = reference_pair(product, [x, w], dtype=dtype)
    # The same sum in another order, in float32.
    other = sum(x.float()[:, k::7] @ w.float()[k::7] for k in range(7))
    return other.to(dtype), reference, exact


def test_another_order_of_summation_passes(case):
    report = assert_within_budget(*case)
    assert [measure.name for measure in report.measures] == ["max", "rms", "row", "drift"]
    assert 0.0 < report.used <= 1.0


def test_a_uniform_drift_of_one_percent_fails(case):
    right, reference, exact = case
    wrong = (exact * 1.01).to(right.dtype)
    report = error_budget(wrong, reference, exact)
    assert not report.ok
    with pytest.raises(AssertionError, match="over budget"):
        assert_within_budget(wrong, reference, exact)


def test_one_wrong_row_fails_and_is_named(case):
    right, reference, exact = case
    wrong = right.clone()
    wrong[17] = wrong[17] * 1.05
    report = error_budget(wrong, reference, exact, name="y")
    assert not report.ok
    assert report.worst_row == 17
    assert "worst row 17" in report.message()
    assert "\n" not in report.message()
    assert report.message().startswith("y (60, 40)")


def test_a_small_wrong_row_among_large_ones_fails():
    exact = random_tensor((50, 30), dtype=torch.float64, seed=3)
    exact[21] *= 1e-4  # its error is far below one rounding of the largest element
    wrong = exact.float()
    wrong[21] *= 1.001
    report = error_budget(wrong, exact.float(), exact)
    over = [measure.name for measure in report.measures if measure.used > 1]
    assert over == ["row"]
    assert report.worst_row == 21


def test_swapped_rows_and_elements_fail(case):
    right, reference, exact = case
    rows = right.clone()
    rows[[3, 4]] = rows[[4, 3]]
    assert not error_budget(rows, reference, exact).ok
    elements = right.clone()
    elements[5, [0, 1]] = elements[5, [1, 0]]
    assert not error_budget(elements, reference, exact).ok


def test_an_added_constant_and_a_missing_term_fail(case):
    right, reference, exact = case
    eps = torch.finfo(right.dtype).eps
    shifted = (exact + 8 * eps * exact.abs().max()).to(right.dtype)
    assert not error_budget(shifted, reference, exact).ok


def test_a_forgotten_element_fails(case):
    right, reference, exact = case
    wrong = right.clone()
    wrong[59, 39] = math.nan
    report = error_budget(wrong, reference, exact)
    assert not report.ok
    assert report.used == math.inf
    assert "first at (59, 39): nan" in report.message()


def test_what_is_not_finite_must_be_the_same_in_both():
    exact = torch.tensor([1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    right = exact.float()
    assert error_budget(right, right, exact).ok
    for index, value in ((1, -math.inf), (1, 1e30), (3, 0.0), (0, math.inf)):
        wrong = right.clone()
        wrong[index] = value
        assert not error_budget(wrong, right, exact).ok, (index, value)


def test_an_overflow_of_the_dtype_is_expected_where_the_reference_has_it():
    exact = torch.tensor([1.0, 1e6], dtype=torch.float64)
    half = exact.half()
    assert half[1] == math.inf
    assert error_budget(half, half, exact).ok
    assert not error_budget(torch.tensor([1.0, 60000.0]).half(), half, exact).ok


def test_wrong_shape_and_dtype_fail():
    exact = torch.ones(2, 3, dtype=torch.float64)
    assert "expected shape (2, 3)" in error_budget(torch.ones(3, 2), exact.float(), exact).message()
    assert "dtype" in error_budget(exact.half(), exact.float(), exact).message()
    assert not error_budget(torch.ones(2, 3, dtype=torch.int64), exact.float(), exact).ok


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (4, 0), (2, 3, 4), (1, 1)])
def test_every_shape_can_be_compared(shape):
    exact = random_tensor(shape, dtype=torch.float64, seed=4)
    assert error_budget(exact.float(), exact.float(), exact).ok
    if exact.numel():
        assert not error_budget(exact.float() * 1.01, exact.float(), exact).ok


def test_zeros_must_stay_zeros():
    exact = torch.zeros(4, 5, dtype=torch.float64)
    assert error_budget(exact.float(), exact.float(), exact).ok
    wrong = exact.float()
    wrong[2, 2] = 1e-20
    assert not error_budget(wrong, exact.float(), exact).ok


def test_float64_is_measured_against_long_double():
    x = random_tensor((20, 500), dtype=torch.float64, seed=5)
    w = random_tensor((500, 8), dtype=torch.float64, seed=6)
    exact = long_double(x) @ long_double(w)
    assert exact.dtype == np.longdouble
    assert np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
    result, other = x @ w, sum(x[:, k::13] @ w[k::13] for k in range(13))
    assert_within_budget(other, result, exact, sum_length=500)
    assert not error_budget(other * (1 + 1e-13), result, exact, sum_length=500).ok
    assert not error_budget(other.float().double(), result, exact, sum_length=500).ok


def test_the_reference_pair_rounds_its_inputs():
    x = torch.tensor([1.0 + 2.0**-12])
    half, exact = reference_pair(torch.mul, [x, x], dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert exact.item() == 1.0
    single, exact = reference_pair(torch.mul, [x, x], dtype=torch.float32)
    assert exact.item() == (1.0 + 2.0**-12) ** 2
    assert abs(single.item() - exact.item()) <= 2.0**-24
