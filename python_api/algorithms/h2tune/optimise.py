"""The optimiser of what is shared: AdamW for DeltaM and Theta, plain SGD for the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from python_api.models.optimise import LocalOptimizer, learning_rate_factor

if TYPE_CHECKING:
    from python_api.algorithms.h2tune.middle import PartyMiddle
    from python_api.config import TrainConfig

__all__ = ["SCORE_LR", "SharedOptimizer"]

# A score's gradient is dT * M, about 1e-4 at the start, against scores spread over 1/sqrt(R). Tried
# on two tiny parties, R = 16, r = 4, 20 steps a round: at 1 under 0.5 % of Omega changed in any
# round, at 100 15 % in the first and 1 % later.
SCORE_LR = 100.0


class SharedOptimizer:
    """Made anew, and so empty, after every download. No weight decay on any of the three.

    total, start: optimiser steps of the whole run and those already done, for the schedule.
    """

    def __init__(self, middle: PartyMiddle, train: TrainConfig, *, total: int, start: int) -> None:
        slow = [p for p in (middle.delta, middle.relation.theta) if p is not None]
        self.adamw = LocalOptimizer(
            [{"params": slow, "lr": train.lr, "weight_decay": 0.0}],
            schedule=train.schedule,
            warmup=train.warmup,
            total=total,
            clip=0.0,
            start=start,
        )
        scores = [middle.scores] if middle.scores.requires_grad else []
        self.sgd = torch.optim.SGD(scores, lr=SCORE_LR, weight_decay=0.0) if scores else None
        self.parameters = slow + scores
        self.train = train

    @property
    def steps(self) -> int:
        return self.adamw.steps

    @steps.setter
    def steps(self, value: int) -> None:
        self.adamw.steps = value

    def step(self) -> None:
        """Clip all gradients together, move, clear the gradients, count the step."""
        if self.train.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip)
        if self.sgd is not None:
            factor = learning_rate_factor(
                self.steps,
                schedule=self.train.schedule,
                warmup=self.train.warmup,
                total=self.adamw.total,
            )
            self.sgd.param_groups[0]["lr"] = SCORE_LR * factor
            self.sgd.step()
            self.sgd.zero_grad(set_to_none=True)
        self.adamw.step()
