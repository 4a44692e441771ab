"""Prototypes in plain PyTorch: the specification, and what runs where no kernel does."""

from __future__ import annotations

from fedkernels.prototype.reference.assign import distance_to, prototype_assign
from fedkernels.prototype.reference.class_sum import class_sum
from fedkernels.prototype.reference.cross_entropy import prototype_cross_entropy
from fedkernels.prototype.reference.distance import prototype_distance, prototype_distance_backward
from fedkernels.prototype.reference.softmax import prototype_softmax, prototype_softmax_backward

__all__ = [
    "class_sum",
    "distance_to",
    "prototype_assign",
    "prototype_cross_entropy",
    "prototype_distance",
    "prototype_distance_backward",
    "prototype_softmax",
    "prototype_softmax_backward",
]
