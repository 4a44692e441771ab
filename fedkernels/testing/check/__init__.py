"""Every kernel on your own machine, held to its specification: `fedkernels check-kernels`.

For each named case, backend and dtype, the public function runs forward and backward, and each
result is compared with the float64 reference by the error budget (`fedkernels.testing.budget`).
Selections have to be equal, not close. The benchmarks use the same comparisons as their gate.

A family adds a file with a function `check(device)` that yields rows, and a line in `_FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch

from fedkernels.testing.check import plans, prototype, transport, triple_lora
from fedkernels.testing.check.compare import (
    Verdict,
    linear_within_budget,
    selection_is_exact,
    within_budget,
)
from fedkernels.testing.check.plans import (
    conditional_within_budget,
    emd_is_optimal,
    iterates_within_budget,
    plan_is_optimal,
)
from fedkernels.testing.check.prototype import nearest_is_exact, prototype_within_budget
from fedkernels.testing.check.row import CheckRow

__all__ = [
    "FAMILIES",
    "CheckRow",
    "Verdict",
    "check_kernels",
    "conditional_within_budget",
    "emd_is_optimal",
    "iterates_within_budget",
    "linear_within_budget",
    "nearest_is_exact",
    "plan_is_optimal",
    "prototype_within_budget",
    "selection_is_exact",
    "within_budget",
]

_FAMILIES = {
    "prototype": prototype.check,
    "transport": lambda device: chain(transport.check(device), plans.check(device)),
    "triple_lora": triple_lora.check,
}
FAMILIES = tuple(_FAMILIES)


def check_kernels(
    family: str | None = None,
    *,
    device: str = "cpu",
    progress: Callable[[CheckRow], None] | None = None,
) -> list[CheckRow]:
    """Checks every named case of `family` (None: of all) on every backend that `device` can run.

    Returns one row per op, case, backend and dtype, in a fixed order; `progress` gets each as it is
    found. Raises ValueError for an unknown family. Takes some seconds.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}")
    rows = []
    for name in FAMILIES if family is None else (family,):
        for row in _FAMILIES[name](torch.device(device)):
            rows.append(row)
            if progress is not None:
                progress(row)
    return rows
