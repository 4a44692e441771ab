"""Aligned rows with a loss in which every class has the same weight."""

from __future__ import annotations

import torch
from torch import Tensor

from python_api.algorithms.baselines.vertical.vanilla import VflVanilla

__all__ = ["VflBalanced", "balanced_weights"]


def balanced_weights(y: Tensor, classes: int) -> Tensor:
    """(C,) n / (C n_c) over the n labels that are not -1; a class without rows has no term.

    >>> balanced_weights(torch.tensor([0, 0, 0, 1, -1]), 2).tolist()
    [0.6666666865348816, 2.0]
    """
    counts = torch.bincount(y[y >= 0], minlength=classes).float()
    return counts.sum() / (classes * counts.clamp_min(1))


class VflBalanced(VflVanilla):
    """`vfl_vanilla` with class weights n / (C n_c) of the aligned rows."""

    name = "vfl_balanced"

    def begin_run(self) -> None:
        super().begin_run()
        y = self.server.y["train"][self.streams["aligned"].rows]
        self._weights = balanced_weights(y, self.server.classes).to(self.server.device)

    def class_weight(self) -> Tensor | None:
        return self._weights
