"""AdamW with warm-up, a schedule over the whole run, and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["LocalOptimizer", "learning_rate_factor"]


def learning_rate_factor(step: int, *, schedule: str, warmup: int, total: int) -> float:
    """The factor on the learning rate at optimiser step ``step`` (from 0).

    It rises as ``(step + 1) / warmup`` and then stays (``"constant"``), or falls as
    ``(1 + cos(pi * done)) / 2`` over what is left of ``total`` (``"cosine"``).

    Example:
        >>> [learning_rate_factor(s, schedule="cosine", warmup=2, total=6) for s in (0, 1, 4)]
        [0.5, 1.0, 0.5]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


class LocalOptimizer:
    """AdamW over groups with learning rates of their own.

    Args:
        groups: dicts with ``params`` and ``lr``, and optionally ``weight_decay``.
        schedule, warmup, total: see ``learning_rate_factor``; steps are optimiser steps.
        weight_decay: the default of the groups.
        clip: bound of the norm of all gradients together; 0 does not clip.
        start: steps already done, for an optimiser that is made anew within a run.
        fused: torch's fused step, one kernel for all parameters; its bits are not those of the
            default.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        schedule: str = "constant",
        warmup: int = 0,
        total: int = 0,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        start: int = 0,
        fused: bool = False,
    ) -> None:
        kept = []
        for group in groups:
            params: list[nn.Parameter] = list(group["params"])
            if params:
                kept.append({"weight_decay": weight_decay, **group, "params": params})
        self.adamw = torch.optim.AdamW(kept, fused=fused or None) if kept else None
        self.rates = [group["lr"] for group in kept]
        self.schedule = schedule
        self.warmup = warmup
        self.total = total
        self.clip = clip
        self.steps = start

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of all groups."""
        if self.adamw is None:
            return []
        return [p for group in self.adamw.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        if self.adamw is not None:
            self.adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip, move the parameters that have a gradient, clear the gradients, count the step."""
        if self.adamw is not None:
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            factor = learning_rate_factor(
                self.steps, schedule=self.schedule, warmup=self.warmup, total=self.total
            )
            for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.adamw.step()
            self.zero_grad()
        self.steps += 1

    def state(self) -> dict[str, object]:
        """Moments by position of the parameter, and the step count; nothing else moves."""
        moments: dict[str, object] = {}
        if self.adamw is not None:
            for index, parameter in enumerate(self.parameters):
                moments[str(index)] = {
                    name: value.detach().clone()
                    for name, value in self.adamw.state.get(parameter, {}).items()
                }
        return {"steps": self.steps, "moments": moments}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        self.steps = int(state["steps"])
        if self.adamw is None:
            return
        self.adamw.state.clear()
        for index, parameter in enumerate(self.parameters):
            moments = state["moments"].get(str(index), {})
            if moments:
                self.adamw.state[parameter] = {
                    # AdamW keeps its step counts on the CPU.
                    name: value.clone() if name == "step" else value.clone().to(parameter.device)
                    for name, value in moments.items()
                }
