"""Optimal transport between small or large discrete measures, batched and differentiable."""

from __future__ import annotations

from fedkernels.transport.api import sinkhorn, sinkhorn_divergence, sinkhorn_points
from fedkernels.transport.conditional import ConditionalTransport, conditional_transport
from fedkernels.transport.emd import EmdResult, emd
from fedkernels.transport.result import Divergence, SinkhornResult, TransportStatus

__all__ = [
    "ConditionalTransport",
    "Divergence",
    "EmdResult",
    "SinkhornResult",
    "TransportStatus",
    "conditional_transport",
    "emd",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_points",
]
