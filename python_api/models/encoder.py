"""Encoders of a table's rows: a perceptron, and a small convolutional network for images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from python_api.config.schema import EncoderConfig

__all__ = ["ConvEncoder", "MLPEncoder", "build_encoder"]


class MLPEncoder(nn.Sequential):
    """Linear layers with ReLU between them: (n, features) -> (n, out).

    >>> MLPEncoder(5, (8,), 3)(torch.zeros(2, 5)).shape
    torch.Size([2, 3])
    """

    def __init__(self, features: int, hidden: tuple[int, ...], out: int) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        super().__init__(*layers, nn.Linear(features, out))


class ConvEncoder(nn.Module):
    """Two 3 x 3 convolutions, the larger maps halved once, one linear layer.

    Takes flat rows (n, channels * height * width), as tables hold them.

    >>> ConvEncoder((1, 8, 4), 3)(torch.zeros(2, 32)).shape
    torch.Size([2, 3])
    """

    def __init__(self, shape: tuple[int, int, int], out: int, width: int = 16) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.shape = shape
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.halved = ((height + 1) // 2, (breadth + 1) // 2)
        self.last = nn.Linear(2 * width * self.halved[0] * self.halved[1], out)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.first(x.view(-1, *self.shape)))
        maps = nn.functional.adaptive_max_pool2d(maps, self.halved)
        return self.last(torch.relu(self.second(maps)).flatten(1))


def build_encoder(model: EncoderConfig, features: int, *, seed: int) -> nn.Module:
    """The encoder of `features` inputs that a party's config asks for; equal seeds, equal bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.kind == "cnn":
            assert model.shape is not None  # the config refuses a cnn without one
            return ConvEncoder(model.shape, model.out)
        return MLPEncoder(features, model.hidden, model.out)
