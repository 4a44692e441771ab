"""A layer call, and the selection of a model's middles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .seed import SEED

__all__ = ["LoraProblem", "SelectProblem", "lora_problem", "select_problem"]


@dataclass(frozen=True)
class LoraProblem:
    """One layer call: x (N, D), frozen weight (D, D), A (r, D), T (r, r), B (D, r)."""

    x: Tensor
    weight: Tensor
    A: Tensor
    T: Tensor
    B: Tensor
    grad_output: Tensor
    scale: float

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.A, self.T, self.B

    @property
    def folded_B(self) -> Tensor:
        """B (T + I): the second factor of the plain LoRA layer with the same output."""
        middle = self.T.detach().float() + torch.eye(len(self.T), device=self.T.device)
        return (self.B.detach().float() @ middle).to(self.B.dtype)


@dataclass(frozen=True)
class SelectProblem:
    """All layers of a model: middle, scores (L, R, R); rank^2 entries are chosen in each."""

    middle: Tensor
    scores: Tensor
    rank: int


def lora_problem(
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    adapter_dtype: torch.dtype | None = None,
    train_A: bool = True,
) -> LoraProblem:
    """Normal entries, the weight and A scaled to keep the variance of x, B and T as after training.

    `adapter_dtype` (default: `dtype`) is the dtype of A, T and B.
    """
    n, d, r = sizes["N"], sizes["D"], sizes["r"]
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(deviation)

    x, weight = normal(n, d), normal(d, d, deviation=d**-0.5)
    A, T, B = normal(r, d, deviation=d**-0.5), normal(r, r, deviation=0.3), normal(d, r)
    grad_output = normal(n, d)
    adapters = adapter_dtype or dtype
    return LoraProblem(
        x=x.to(device, dtype).requires_grad_(),
        weight=weight.to(device, dtype),
        A=A.to(device, adapters).requires_grad_(train_A),
        T=T.to(device, adapters).requires_grad_(),
        B=B.to(device, adapters).requires_grad_(),
        grad_output=grad_output.to(device, dtype),
        scale=2.0,
    )


def select_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu"
) -> SelectProblem:
    """Normal middles and normal scores."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (sizes["L"], sizes["R"], sizes["R"])
    middle = torch.randn(shape, generator=generator).to(device, dtype)
    scores = torch.randn(shape, generator=generator).to(device, dtype)
    return SelectProblem(middle, scores, sizes["r"])
