"""The error budget: the one comparison between a kernel's result and the specification.

A kernel may err about as much as the specification does when it is computed in the kernel's dtype:

    err(kernel, exact) <= 2 * (err(reference in that dtype, exact) + eps(dtype) * size(exact))

`exact` is the specification in float64; the "reference in that dtype" takes inputs rounded to the
dtype, computes in float32 and rounds its result. Four errors are measured, all reported:

    max     largest |difference|, size = max|exact|
    rms     root mean square of the difference, size = rms(exact)
    row     worst row: largest |difference| in a row / max|exact| of that row, size = 1
    drift   common factor: |<difference, exact>| / <exact, exact>. It never exceeds the relative
            RMS error, so its budget takes the reference's RMS error and a smaller share of eps: an
            error that all elements share must not hide below the rounding of each (bfloat16 rounds
            by up to 0.4 %, and the three budgets above let a uniform 1 % pass)

float64: the oracle is long double (`long_double`), and eps * sqrt(length of the sum) * size is
added to each budget, since two right orders of summation differ by as much. A value that is not
finite must be the same in both. Tolerances are the same on every machine; there is no switch that
widens them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BudgetReport",
    "Measure",
    "assert_within_budget",
    "error_budget",
    "long_double",
    "reference_pair",
]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measured error and what it may be."""

    name: str
    error: float
    allowed: float

    @property
    def used(self) -> float:
        """Share of the budget that is used; above 1 the result is refused."""
        if self.error <= 0.0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What `error_budget` found.

    measures: empty if the results could not be compared. worst_row: index over the flattened
    leading dimensions of the row that erred most. problem: why they could not be compared, or which
    element is not finite; None otherwise.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    measures: tuple[Measure, ...]
    worst_row: int | None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and all(measure.used <= 1.0 for measure in self.measures)

    @property
    def used(self) -> float:
        """The largest share of a budget that is used (inf if there is a `problem`)."""
        if self.problem is not None:
            return math.inf
        return max((measure.used for measure in self.measures), default=0.0)

    def message(self) -> str:
        """One line: the verdict, each error beside its budget, the worst row."""
        head = f"{self.name} {self.shape} {self.dtype}: "
        if self.problem is not None:
            return head + self.problem
        parts = [f"{m.name} {m.error:.3g} of {m.allowed:.3g}" for m in self.measures]
        if self.worst_row is not None:
            parts.append(f"worst row {self.worst_row}")
        verdict = "within budget" if self.ok else f"over budget {self.used:.3g} times"
        return head + verdict + (f" ({', '.join(parts)})" if parts else " (empty)")


def error_budget(
    actual: Tensor,
    reference: Tensor,
    exact: Tensor | np.ndarray,
    *,
    name: str = "result",
    sum_length: int = 1,
) -> BudgetReport:
    """Compares `actual` with the specification and reports each error beside its budget.

    actual: the kernel's result (..., D), any layout. reference: the specification in that dtype.
    exact: the specification in float64, or for float64 results a numpy long double array.
    sum_length: the length of the longest sum behind one element; read for float64 only.

    >>> exact = torch.linspace(1, 2, 8, dtype=torch.float64)
    >>> error_budget(exact.float(), exact.float(), exact).ok
    True
    >>> error_budget(exact.float() * 1.01, exact.float(), exact).ok
    False
    """
    shape = tuple(actual.shape)
    dtype = actual.dtype
    label = str(dtype).removeprefix("torch.")

    def refuse(problem: str) -> BudgetReport:
        return BudgetReport(name, label, shape, (), None, problem)

    if not dtype.is_floating_point:
        return refuse(f"expected a floating dtype, got {label}")
    if dtype != reference.dtype:
        return refuse(f"expected the dtype of the reference, {reference.dtype}, got {dtype}")
    if shape != tuple(reference.shape) or shape != tuple(exact.shape):
        return refuse(f"expected shape {tuple(reference.shape)} (exact {tuple(exact.shape)})")
    if actual.numel() == 0:
        return BudgetReport(name, label, shape, (), None)

    true = exact if isinstance(exact, np.ndarray) else _wide(exact)
    got, base = _wide(actual).astype(true.dtype), _wide(reference).astype(true.dtype)
    finite = np.isfinite(true)
    # inf equals inf of its sign, NaN equals NaN; where the truth is finite the result has to be.
    # A reference that overflows its dtype where the truth does not sets the expectation.
    finite &= np.isfinite(base)
    expected = np.where(np.isfinite(true), base, true)
    wrong = ~finite & ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
    wrong |= finite & ~np.isfinite(got)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        return refuse(
            f"{int(wrong.sum())} elements are not finite where they should be, or the reverse; "
            f"first at {where}: {float(got[where])}, expected {float(expected[where])}"
        )

    eps = float(torch.finfo(dtype).eps)
    order = eps * math.sqrt(max(sum_length, 1)) if dtype == torch.float64 else 0.0
    true, got, base = (np.where(finite, a, 0) for a in (true, got, base))
    measures, worst_row = _measures(got - true, base - true, true, eps, order)
    return BudgetReport(name, label, shape, measures, worst_row)


def assert_within_budget(
    actual: Tensor,
    reference: Tensor,
    exact: Tensor | np.ndarray,
    *,
    name: str = "result",
    sum_length: int = 1,
) -> BudgetReport:
    """`error_budget`, raising AssertionError with its message; returns the report."""
    report = error_budget(actual, reference, exact, name=name, sum_length=sum_length)
    if not report.ok:
        raise AssertionError(report.message())
    return report


def reference_pair(
    function: Callable[..., Tensor], inputs: Sequence[object], *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(reference in `dtype`, exact): the specification on inputs rounded to `dtype`.

    The first is computed in float32 (float64 for float64) and rounded to `dtype`, the second in
    float64. Floating tensors of `inputs` are converted, everything else is passed as it is.

    >>> half, exact = reference_pair(torch.add, [torch.ones(2), torch.ones(2)], dtype=torch.float16)
    >>> half.dtype, exact.dtype
    (torch.float16, torch.float64)
    """

    def run(compute: torch.dtype) -> Tensor:
        converted = [
            value.detach().to(dtype).to(compute)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for value in inputs
        ]
        return function(*converted)

    narrow = torch.float64 if dtype == torch.float64 else torch.float32
    return run(narrow).to(dtype), run(torch.float64)


def long_double(tensor: Tensor) -> np.ndarray:
    """The tensor as a numpy long double array: the oracle of float64 is computed on such arrays."""
    return _wide(tensor).astype(np.longdouble)


def _wide(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
    return array


def _measures(
    error: np.ndarray, base_error: np.ndarray, true: np.ndarray, eps: float, order: float
) -> tuple[tuple[Measure, ...], int]:
    """`order` is what two right orders of a float64 sum may differ by, relative to the size."""
    top = float(np.abs(true).max())
    size = float(_rms(true))

    def allowed(base: float, scale: float, share: float = 1.0) -> float:
        return 2.0 * (base + share * eps * scale) + order * scale

    base_top = float(np.abs(base_error).max())
    largest = Measure("max", float(np.abs(error).max()), allowed(base_top, top))
    rms_base = float(_rms(base_error))
    rms = Measure("rms", float(_rms(error)), allowed(rms_base, size))

    columns = true.shape[-1] if true.ndim else 1
    row_size = np.abs(true.reshape(-1, columns)).max(axis=1)
    # A row that is all zeros (or all but) is measured against one rounding of the largest element.
    row_size = np.maximum(row_size, max(eps * top, float(np.finfo(np.float64).tiny)))
    row = np.abs(error.reshape(-1, columns)).max(axis=1) / row_size
    base_row = float((np.abs(base_error.reshape(-1, columns)).max(axis=1) / row_size).max())
    worst_row = int(row.argmax())
    per_row = Measure("row", float(row[worst_row]), allowed(base_row, 1.0))

    energy = float((true * true).sum())
    if energy == 0.0:
        return (largest, rms, per_row), worst_row
    # One element has no average to hide behind: the share of eps starts at 1 and falls to 1/4.
    share = max(0.25, 1.0 / math.sqrt(true.size))
    drift = Measure(
        "drift",
        abs(float((error * true).sum())) / energy,
        allowed(rms_base / size, 1.0, share),
    )
    return (largest, rms, per_row, drift), worst_row


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(array * array)))
