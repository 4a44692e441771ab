"""The family's public functions, one module each, with their backends: for `fedkernels info`."""

from __future__ import annotations

from fedkernels._backend import Candidate
from fedkernels.prototype import assign, cross_entropy, distance, softmax
from fedkernels.prototype.class_mean import CANDIDATES as _CLASS_MEAN_CANDIDATES
from fedkernels.prototype.kmeans import CANDIDATES as _KMEANS_CANDIDATES

__all__ = ["OPS"]

# op -> the candidates, in the order in which "auto" tries them
OPS: dict[str, tuple[Candidate, ...]] = {
    "prototype_distance": distance.CANDIDATES,
    "prototype_assign": assign.CANDIDATES,
    "prototype_softmax": softmax.CANDIDATES,
    "prototype_cross_entropy": cross_entropy.CANDIDATES,
    "class_mean": _CLASS_MEAN_CANDIDATES,
    "kmeans": _KMEANS_CANDIDATES,
}
