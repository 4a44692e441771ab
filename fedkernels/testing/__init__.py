"""Shipped testing kit: compare a kernel with its specification on your own machine.

`assert_within_budget` is the comparison, `cases` and `inputs` make the data, `poisoned_empty` finds
elements that nobody wrote, `interleave` and `saved_activations` measure.
"""

from __future__ import annotations

from fedkernels.testing.budget import (
    BudgetReport,
    Measure,
    assert_within_budget,
    error_budget,
    long_double,
    reference_pair,
)
from fedkernels.testing.cases import (
    SELECT_MIDDLE_CASES,
    TRIPLE_LORA_CASES,
    SelectMiddleCase,
    TripleLoraCase,
    select_middle_inputs,
    triple_lora_inputs,
)
from fedkernels.testing.inputs import LAYOUTS, ROWS, random_tensor, with_layout
from fedkernels.testing.poison import poisoned_empty
from fedkernels.testing.prototype_cases import (
    PROTOTYPE_CASES,
    PrototypeCase,
    prototype_inputs,
)
from fedkernels.testing.timing import (
    SavedActivations,
    Timing,
    interleave,
    saved_activations,
    speedup,
)
from fedkernels.testing.transport_cases import (
    SINKHORN_CASES,
    SINKHORN_POINTS_CASES,
    SinkhornCase,
    SinkhornPointsCase,
    sinkhorn_inputs,
    sinkhorn_points_inputs,
)

__all__ = [
    "LAYOUTS",
    "PROTOTYPE_CASES",
    "ROWS",
    "SELECT_MIDDLE_CASES",
    "SINKHORN_CASES",
    "SINKHORN_POINTS_CASES",
    "TRIPLE_LORA_CASES",
    "BudgetReport",
    "Measure",
    "PrototypeCase",
    "SavedActivations",
    "SelectMiddleCase",
    "SinkhornCase",
    "SinkhornPointsCase",
    "Timing",
    "TripleLoraCase",
    "assert_within_budget",
    "error_budget",
    "interleave",
    "long_double",
    "poisoned_empty",
    "prototype_inputs",
    "random_tensor",
    "reference_pair",
    "saved_activations",
    "select_middle_inputs",
    "sinkhorn_inputs",
    "sinkhorn_points_inputs",
    "speedup",
    "triple_lora_inputs",
    "with_layout",
]
