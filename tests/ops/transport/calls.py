"""What the tests of the public Sinkhorn functions share: backends, calls, batches of problems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkernels.transport import SinkhornResult
from tests.ops.kit import CPU, REFERENCE

F64 = torch.float64
BACKENDS = (CPU, REFERENCE)
FIELDS = ("value", "linear_cost", "f", "g", "n_iter", "marginal_error", "status")
CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)


def uniform(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=F64, generator=generator).to(dtype)


def masses(batch: int, n: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    mass = uniform(batch, n, dtype=F64, seed=1000 + seed) + 0.1
    return (mass / mass.sum(1, keepdim=True)).to(dtype)


def everything(result: SinkhornResult) -> dict[str, Tensor]:
    """All results of a call and its plan, by name."""
    found = {name: getattr(result, name).detach() for name in FIELDS}
    return {**found, "plan": result.plan().detach()}


def rows(results: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: t[index] for name, t in results.items()}
