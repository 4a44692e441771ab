"""Optimal transport in plain PyTorch: the specification, and what runs where no kernel does."""

from __future__ import annotations

from fedkernels.transport.reference.conditional import (
    conditional_transport_backward,
    conditional_transport_forward,
)
from fedkernels.transport.reference.points import (
    sinkhorn_points_apply,
    sinkhorn_points_backward,
    sinkhorn_points_forward,
    sinkhorn_points_plan,
)
from fedkernels.transport.reference.sinkhorn import (
    sinkhorn_apply,
    sinkhorn_forward,
    sinkhorn_plan,
)

__all__ = [
    "conditional_transport_backward",
    "conditional_transport_forward",
    "sinkhorn_apply",
    "sinkhorn_forward",
    "sinkhorn_plan",
    "sinkhorn_points_apply",
    "sinkhorn_points_backward",
    "sinkhorn_points_forward",
    "sinkhorn_points_plan",
]
