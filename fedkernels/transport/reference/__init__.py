"""Optimal transport in plain PyTorch: the specification, and what runs where no kernel does."""

from __future__ import annotations

from fedkernels.transport.reference.sinkhorn import (
    sinkhorn_apply,
    sinkhorn_forward,
    sinkhorn_plan,
)

__all__ = ["sinkhorn_apply", "sinkhorn_forward", "sinkhorn_plan"]
