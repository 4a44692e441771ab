"""TripleLoraLinear: a frozen nn.Linear with a triple-matrix adapter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fedkernels.triple_lora.api import fold_middle, triple_lora_linear

_PHASES = {
    "all": ("A", "T", "B"),
    "shared": ("T",),
    "private": ("A", "B"),
    "frozen": (),
}


class TripleLoraLinear(nn.Module):
    """y = base(x) + alpha / rank * dropout(x) A^T (T + residual * I)^T B^T.

    base: the nn.Linear to adapt; its parameters are frozen in place and kept, not copied.
    rank: r >= 1. alpha: the scale is alpha / rank. residual: False drops the identity beside T.
    Parameters: A (r, D_in) Kaiming-uniform, T (r, r) and B (D_out, r) zero, so that the layer
    starts as ``base`` does; float32 (float64 for a float64 base), whatever the base's dtype.

    Raises TypeError if ``base`` is no nn.Linear, ValueError for a rank below 1.

    >>> layer = TripleLoraLinear(nn.Linear(8, 4), rank=2)
    >>> layer.set_phase("shared")
    >>> [name for name, p in layer.named_parameters() if p.requires_grad]
    ['T']
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        *,
        alpha: float = 16,
        residual: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be an nn.Linear, got {type(base).__name__}")
        if not isinstance(rank, int):
            raise TypeError(f"rank must be an int, got {type(rank).__name__}")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not 0.0 <= dropout_p <= 1.0:
            raise ValueError(f"dropout_p must be between 0 and 1, got {dropout_p}")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.residual, self.dropout_p, self.backend = residual, dropout_p, backend
        weight = base.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        options: dict[str, Any] = {"dtype": dtype, "device": weight.device}
        self.A = nn.Parameter(torch.empty(rank, base.in_features, **options))
        self.T = nn.Parameter(torch.empty(rank, rank, **options))
        self.B = nn.Parameter(torch.empty(base.out_features, rank, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Kaiming-uniform(a = sqrt 5); T = 0 and B = 0."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.T)
        nn.init.zeros_(self.B)

    def set_phase(self, phase: str) -> None:
        """Which parameters train: "all", "shared" (T), "private" (A and B) or "frozen"."""
        if phase not in _PHASES:
            raise ValueError(f"phase must be one of {', '.join(_PHASES)}; got {phase!r}")
        for name in ("A", "T", "B"):
            getattr(self, name).requires_grad_(name in _PHASES[phase])

    def forward(self, x: Tensor) -> Tensor:
        return triple_lora_linear(
            x,
            self.base.weight,
            self.A,
            self.T,
            self.B,
            bias=self.base.bias,
            scale=self.scale,
            residual=self.residual,
            dropout_p=self.dropout_p,
            training=self.training,
            backend=self.backend,
        )

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain nn.Linear with the weight W + B (T + I) A * scale, computed in float32."""
        weight = self.base.weight
        Q = fold_middle(self.B, self.T, scale=self.scale, residual=self.residual)
        result = nn.Linear(
            self.base.in_features,
            self.base.out_features,
            bias=self.base.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        result.weight.copy_(weight.to(Q.dtype) + Q @ self.A)
        if self.base.bias is not None:
            result.bias.copy_(self.base.bias)
        return result

    def extra_repr(self) -> str:
        return (
            f"rank={self.rank}, alpha={self.alpha}, residual={self.residual}, "
            f"dropout_p={self.dropout_p}"
        )
