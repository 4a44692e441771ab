"""Points and prototypes: distances, nearest prototypes, softmax, cross-entropy, differentiable."""

from __future__ import annotations

from fedkernels.prototype.assign import Assignment, prototype_assign
from fedkernels.prototype.class_mean import ClassMean, class_mean
from fedkernels.prototype.cross_entropy import prototype_cross_entropy
from fedkernels.prototype.distance import prototype_distance
from fedkernels.prototype.kmeans import KMeans, kmeans
from fedkernels.prototype.softmax import PrototypeSoftmax, prototype_softmax

__all__ = [
    "Assignment",
    "ClassMean",
    "KMeans",
    "PrototypeSoftmax",
    "class_mean",
    "kmeans",
    "prototype_assign",
    "prototype_cross_entropy",
    "prototype_distance",
    "prototype_softmax",
]
