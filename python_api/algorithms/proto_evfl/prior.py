"""Class priors: of labels, by EM of rows without labels, and the mixture of local and global."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["em_step", "histogram", "mixed"]

TINY = 1e-12


def histogram(labels: Tensor, classes: int) -> Tensor:
    """(C,) shares of the labels (those below 0 do not count), one added to every class.

    >>> histogram(torch.tensor([0, 0, -1]), 2).tolist()
    [0.75, 0.25]
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float() + 1
    return counts / counts.sum()


def em_step(prior: Tensor, mass: Tensor, count: int, momentum: float) -> Tensor:
    """One step of EM with momentum: w <- (1 - b) w + b * (1/n) sum_i p(. | h_i; w).

    mass (C,): the sum over n = count rows of their class probabilities under `prior`.
    """
    if count == 0:
        return prior
    found = (1 - momentum) * prior + momentum * mass / count
    return found / found.sum()


def mixed(
    local: Tensor, world: Tensor, *, lam: float, floor: float = 0.2, rule: str = "arithmetic"
) -> Tensor:
    """w = lam p + (1 - lam) q, or p^lam q^(1 - lam) (`rule = "geometric"`), as shares.

    No class falls below `floor`/C: with a weight of 0 it could never be chosen again.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    >>> mixed(p, q, lam=1.0).tolist(), [round(v, 2) for v in mixed(p, q, lam=0.5).tolist()]
    ([0.5, 0.5], [0.7, 0.3])
    """
    if rule == "geometric":
        w = (lam * local.clamp_min(TINY).log() + (1 - lam) * world.clamp_min(TINY).log()).exp()
        w = w / w.sum()
    else:
        w = lam * local + (1 - lam) * world
    w = w.clamp_min(floor / len(w))
    return w / w.sum()
