"""The tensors of one benchmark case, drawn from a fixed seed and shared by every contender."""

from __future__ import annotations

from .prototype import (
    ClusterProblem,
    MeanProblem,
    PrototypeProblem,
    cluster_problem,
    mean_problem,
    prototype_problem,
)
from .transport import (
    ConditionalProblem,
    ExactProblem,
    SinkhornProblem,
    conditional_problem,
    exact_problem,
    sinkhorn_problem,
)
from .triple_lora import LoraProblem, SelectProblem, lora_problem, select_problem

__all__ = [
    "ClusterProblem",
    "ConditionalProblem",
    "ExactProblem",
    "LoraProblem",
    "MeanProblem",
    "PrototypeProblem",
    "SelectProblem",
    "SinkhornProblem",
    "cluster_problem",
    "conditional_problem",
    "exact_problem",
    "lora_problem",
    "mean_problem",
    "prototype_problem",
    "select_problem",
    "sinkhorn_problem",
]
