"""Exact optimal transport: float64 on the CPU, no Triton twin and no reference backend.

cost (B|1, n, m), a (B|1, n), b (B|1, m), sizes (B, 2) int64. ``mismatch``: the relative difference
of the two totals that is scaled away on b. ``max_pivot``: pivots of one problem, after which its
status is MAX_ITER, its plan feasible and its value an upper bound.
"""

from __future__ import annotations

import torch

__all__ = ["emd"]

torch.library.define(
    "fedkernels::emd",
    "(Tensor cost, Tensor? a, Tensor? b, Tensor? sizes, SymInt batch, float mismatch, "
    "SymInt max_pivot) -> (Tensor value, Tensor f, Tensor g, Tensor plan, Tensor status)",
)


@torch.library.register_fake("fedkernels::emd")
def _(cost, a, b, sizes, batch, mismatch, max_pivot):
    n, m = cost.shape[1:]
    return (
        cost.new_empty(batch),
        cost.new_empty(batch, n),
        cost.new_empty(batch, m),
        cost.new_empty(batch, n, m),
        cost.new_empty(batch, dtype=torch.uint8),
    )


emd = torch.ops.fedkernels.emd.default
