"""Triton kernels of the family, by the names that the reference and the compiled ops have too."""

from __future__ import annotations

from fedkernels.prototype.triton.assign import prototype_assign
from fedkernels.prototype.triton.class_sum import class_sum
from fedkernels.prototype.triton.cross_entropy import prototype_cross_entropy
from fedkernels.prototype.triton.distance import prototype_distance, prototype_distance_backward
from fedkernels.prototype.triton.softmax import prototype_softmax, prototype_softmax_backward

__all__ = [
    "class_sum",
    "prototype_assign",
    "prototype_cross_entropy",
    "prototype_distance",
    "prototype_distance_backward",
    "prototype_softmax",
    "prototype_softmax_backward",
]
