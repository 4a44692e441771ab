"""Triton kernels of the family, by the names that the reference and the compiled ops have too."""

from __future__ import annotations

from fedkernels.transport.triton.conditional import (
    conditional_transport_backward,
    conditional_transport_forward,
)
from fedkernels.transport.triton.points import (
    sinkhorn_points_apply,
    sinkhorn_points_backward,
    sinkhorn_points_forward,
    sinkhorn_points_plan,
)
from fedkernels.transport.triton.sinkhorn import sinkhorn_apply, sinkhorn_forward, sinkhorn_plan

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
