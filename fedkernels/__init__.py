"""Fast, trustworthy kernels for federated fine-tuning, behind differentiable PyTorch functions."""

from __future__ import annotations

from fedkernels._backend import BackendUnavailable
from fedkernels.prototype import (
    class_mean,
    kmeans,
    prototype_assign,
    prototype_cross_entropy,
    prototype_distance,
    prototype_softmax,
)
from fedkernels.transport import (
    conditional_transport,
    emd,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_points,
)
from fedkernels.triple_lora import (
    TripleLoraLinear,
    fold_middle,
    select_middle,
    triple_lora_delta,
    triple_lora_linear,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "TripleLoraLinear",
    "class_mean",
    "conditional_transport",
    "emd",
    "fold_middle",
    "kmeans",
    "prototype_assign",
    "prototype_cross_entropy",
    "prototype_distance",
    "prototype_softmax",
    "select_middle",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_points",
    "triple_lora_delta",
    "triple_lora_linear",
]
