"""Transport problems: squared distances of points in the unit square, random masses; features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .seed import SEED

__all__ = [
    "ConditionalProblem",
    "ExactProblem",
    "SinkhornProblem",
    "conditional_problem",
    "exact_problem",
    "sinkhorn_problem",
]


@dataclass(frozen=True)
class SinkhornProblem:
    """B problems: cost (B, n, m) in [0, 2], a (B, n), b (B, m).

    ``tol`` 0 runs exactly ``iterations``; else they are the most that are allowed.
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    eps: float
    iterations: int
    tol: float


@dataclass(frozen=True)
class ExactProblem:
    """B problems: cost (B, n, n); a, b (B, n), or None for uniform masses."""

    cost: Tensor
    a: Tensor | None
    b: Tensor | None


@dataclass(frozen=True)
class ConditionalProblem:
    """Features x (N, D) and prototypes y (K, D), both with gradients."""

    x: Tensor
    y: Tensor
    temperature: float


def conditional_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu"
) -> ConditionalProblem:
    """Unit vectors: the logits are those of a normalised head."""
    generator = torch.Generator().manual_seed(SEED)

    def unit(count: int) -> Tensor:
        points = torch.randn(count, sizes["D"], generator=generator)
        return (points / points.norm(dim=1, keepdim=True)).to(device, dtype).requires_grad_()

    return ConditionalProblem(unit(sizes["N"]), unit(sizes["K"]), temperature=0.1)


def sinkhorn_problem(
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    eps: float = 0.1,
    tol: float = 0.0,
) -> SinkhornProblem:
    generator = torch.Generator().manual_seed(SEED)
    batch, n, m = sizes["B"], sizes["n"], sizes["m"]
    cost = _square(batch, n, m, generator)
    return SinkhornProblem(
        cost=cost.to(device, dtype),
        a=_masses(batch, n, generator).to(device, dtype),
        b=_masses(batch, m, generator).to(device, dtype),
        eps=eps,
        iterations=sizes["iterations"],
        tol=tol,
    )


def exact_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu", uniform: bool
) -> ExactProblem:
    generator = torch.Generator().manual_seed(SEED)
    batch, n = sizes["B"], sizes["n"]
    cost = _square(batch, n, n, generator).to(device, dtype)
    if uniform:
        return ExactProblem(cost, None, None)
    a, b = (_masses(batch, n, generator).to(device, dtype) for _ in range(2))
    return ExactProblem(cost, a, b)


def _square(batch: int, n: int, m: int, generator: torch.Generator) -> Tensor:
    x = torch.rand(batch, n, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(batch, m, 2, generator=generator, dtype=torch.float64)
    return (x[:, :, None] - y[:, None]).square().sum(3)


def _masses(batch: int, n: int, generator: torch.Generator) -> Tensor:
    mass = torch.rand(batch, n, generator=generator, dtype=torch.float64) + 0.1
    return mass / mass.sum(1, keepdim=True)
