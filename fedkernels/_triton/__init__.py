"""What every Triton kernel of the package shares: products, narrowing, logarithms and the launch.

Rules that hold for all of them, since no GPU is needed to prove a kernel that keeps them:
tensors are widened at load and narrowed through `narrow`; products go through `dot_`; there is no
autotuning, configurations are data; every launch goes through `launch`.
"""

from __future__ import annotations

from fedkernels._triton.arithmetic import INTERPRETED, dot_, is_finite, log2_, narrow
from fedkernels._triton.launching import (
    PRECISION,
    Blocks,
    largest_grid,
    launch,
    padded,
    split_double,
)

__all__ = [
    "INTERPRETED",
    "PRECISION",
    "Blocks",
    "dot_",
    "is_finite",
    "largest_grid",
    "launch",
    "log2_",
    "narrow",
    "padded",
    "split_double",
]
