"""Gaussian noise on the gradients that go back to passive parties, by an accountant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig

__all__ = ["GradientNoise", "multiplier"]


def multiplier(epsilon: float, delta: float, releases: int) -> float:
    """The noise multiplier z with which `releases` Gaussian mechanisms in a row are
    (epsilon, delta)-differentially private, by the Renyi accountant of dp-accounting.

    Raises:
        InputError: dp-accounting is not installed.
    """
    try:
        import dp_accounting as dp
        from dp_accounting import rdp
    except ImportError:
        raise InputError(
            "proto_evfl.gradients: \"noise\" needs dp-accounting; pip install 'fedkernels[privacy]'"
        ) from None

    def event(z: float) -> dp.DpEvent:
        return dp.SelfComposedDpEvent(dp.GaussianDpEvent(z), releases)

    start = dp.LowerEndpointAndGuess(0.0, 10.0)
    return float(dp.calibrate_dp_mechanism(rdp.RdpAccountant, event, epsilon, delta, start))


class GradientNoise:
    """Clips the gradient of each row's own loss to norm `clip` and adds N(0, s^2) to every entry.

    Another label of one row changes what is sent of that row by at most 2 clip, and nothing else in
    that message, so s = 2 clip z with z from `multiplier` for as often as a row is sent.

    releases: how often the row that is sent most often is sent.
    """

    def __init__(self, keys: ProtoEvflConfig, releases: int) -> None:
        self.keys, self.releases = keys, max(1, releases)
        self.z = multiplier(keys.epsilon, keys.delta, self.releases)

    def __call__(self, grad: Tensor, rows: int) -> Tensor:
        """grad (b, d): of a mean over `rows` rows."""
        each = grad * rows
        norm = each.norm(dim=1, keepdim=True).clamp_min(1e-12)
        each = each * (self.keys.clip / norm).clamp_max(1.0)
        return (each + 2 * self.keys.clip * self.z * torch.randn_like(each)) / rows

    def told(self) -> list[str]:
        """Sentences for the report: what epsilon covers, and what not."""
        keys = self.keys
        return [
            f"Gradients to passive parties carry Gaussian noise: each row's clipped to norm "
            f"{keys.clip:g}, noise multiplier {self.z:.2f}, at most {self.releases} messages about "
            f"a row; (epsilon, delta) = ({keys.epsilon:g}, {keys.delta:g}) by Renyi accounting.",
            "That covers what the messages about a row say directly about that row's label. It "
            "does not cover what the row's label leaves in the fused model and so in other rows' "
            "gradients, nor prototypes, counts and priors.",
            "The noise is drawn from the run's seed: it protects against those who do not know it.",
        ]
