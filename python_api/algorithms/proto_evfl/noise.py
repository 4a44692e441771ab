"""Gaussian noise on the gradients that are sent to passive parties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig

__all__ = ["GradientNoise"]


class GradientNoise:
    """Each row's gradient is clipped to norm `clip` and gets N(0, (sigma clip)^2) per entry."""

    def __init__(self, keys: ProtoEvflConfig) -> None:
        self.keys = keys
        self.sigma = 1.0

    def __call__(self, grad: Tensor) -> Tensor:
        norm = grad.norm(dim=1, keepdim=True).clamp_min(1e-12)
        clipped = grad * (self.keys.clip / norm).clamp_max(1.0)
        return clipped + self.sigma * self.keys.clip * torch.randn_like(clipped)

    def told(self) -> list[str]:
        return []
