"""One adapted layer: a frozen linear layer and the slots that live in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkernels import triple_lora_linear

__all__ = ["AdaptedLinear"]


class AdaptedLinear(nn.Module):
    """Stands in for an ``nn.Linear`` or a ``Conv1D``; holds the same frozen weight tensor.

    With one slot it computes ``x W^T + b + scale * x A^T (T + residual*I)^T B^T``. With k slots
    in one fused layer, A is stacked ``(k r, D_in)``, T is block-diagonal and B ``(D_out, k r)`` is
    zero outside each slot's rows and columns: one call, and each slot keeps its own A, T and B.

    Args:
        layer: the layer that it replaces.
        slots: the slots that live here, each with its rows of the output (None: all of them).
        A: per slot ``(r, D_in)``.
        B: per slot ``(D_out_slot, r)``.
        places: per slot, its position in the flattened ``(L, S)`` list of middles.
        scale: factor of the adapter.
        conv1d: the layer's weight is stored ``(D_in, D_out)``.
    """

    weight: Tensor
    bias: Tensor | None
    in_features: int
    out_features: int

    def __init__(
        self,
        layer: Any,
        *,
        slots: Sequence[tuple[str, slice | None]],
        A: Sequence[nn.Parameter],
        B: Sequence[nn.Parameter],
        places: Sequence[int],
        scale: float,
        conv1d: bool,
    ) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.conv1d = conv1d
        shape = layer.weight.shape[::-1] if conv1d else layer.weight.shape
        self.out_features, self.in_features = shape
        if conv1d:
            self.nx, self.nf = self.in_features, self.out_features
        self.slots = list(slots)
        self.places = list(places)
        self.scale = scale
        self.residual = True
        self.middles: list[Tensor] | None = None
        # In tuples, so that they are parameters of the model once, under their slot's name.
        self._A = tuple(A)
        self._B = tuple(B)

    @property
    def linear_weight(self) -> Tensor:
        """The frozen weight as ``(D_out, D_in)``, a view."""
        return self.weight.t() if self.conv1d else self.weight

    def factors(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """(A, T, B) of the whole layer, slots stacked."""
        if len(self.slots) == 1 and self.slots[0][1] is None:
            return self._A[0], self.middles[0] if self.middles else None, self._B[0]
        T = torch.block_diag(*self.middles) if self.middles else None
        blocks = []
        for (_, rows), B in zip(self.slots, self._B, strict=True):
            rows = rows or slice(0, self.out_features)
            blocks.append(F.pad(B, (0, 0, rows.start, self.out_features - rows.stop)))
        return torch.cat(self._A), T, torch.cat(blocks, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        A, T, B = self.factors()
        return triple_lora_linear(
            x,
            self.linear_weight,
            A,
            T,
            B,
            bias=self.bias,
            scale=self.scale,
            residual=self.residual,
        )

    def extra_repr(self) -> str:
        names = " ".join(slot for slot, _ in self.slots)
        return f"{self.in_features}, {self.out_features}, slots={names}"
