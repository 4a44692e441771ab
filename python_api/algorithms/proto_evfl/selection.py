"""Which unaligned rows take part: those whose expected conditional transport cost is low."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkernels import conditional_transport, prototype_softmax

__all__ = ["Survey", "ramp", "select", "soft_weights", "survey"]

CHUNK = 4096  # rows at a time: memory does not grow with their number


@dataclass(frozen=True)
class Survey:
    """One look at n rows: cost (n,), the most probable class guess (n,), its probability sure
    (n,), mass (C,) = sum of the rows' class probabilities."""

    cost: Tensor
    guess: Tensor
    sure: Tensor
    mass: Tensor


@torch.no_grad()
def survey(
    encode: Callable[[Tensor], Tensor],
    x: Tensor,
    prototypes: Tensor,
    prior: Tensor,
    *,
    tau: float,
    on_chunk: Callable[[Tensor, int], Tensor] | None = None,
    chunk: int = CHUNK,
) -> Survey:
    """Costs and class probabilities of the rows x (n, F) under class prototypes (C, d).

        pi(c | h) = w_c exp(cos(h, mu_c) / tau) / sum,  cost = sum_c pi(c | h) (1 - cos(h, mu_c))

    on_chunk: given a chunk's mass and its number of rows, returns the prior for the next chunk
        (EM over mini-batches); by default `prior` stays.
    """
    costs, guesses, sures = [], [], []
    total = prior.new_zeros(len(prior))
    for start in range(0, len(x), chunk):
        h = encode(x[start : start + chunk])
        found = prototype_softmax(
            h, prototypes, metric="cosine", temperature=tau, log_prior=prior.log()
        )
        assert found.prob is not None
        sure, guess = found.prob.max(1)
        costs.append(
            conditional_transport(
                h, prototypes, q=prior, cost="cosine", logits="cosine", temperature=tau
            ).row_cost
        )
        guesses.append(guess)
        sures.append(sure)
        total += found.mass
        if on_chunk is not None:
            prior = on_chunk(found.mass, len(h))
    if not costs:
        none = prior.new_zeros(0)
        return Survey(none, none.long(), none, total)
    return Survey(torch.cat(costs), torch.cat(guesses), torch.cat(sures), total)


def ramp(q0: float, round: int, rounds: int) -> float:
    """The share to keep in `round` of 1..rounds: from q0 in the first to 1 in the last.

    >>> ramp(0.3, 1, 8), ramp(0.3, 8, 8), ramp(0.3, 1, 1)
    (0.3, 1.0, 0.3)
    """
    return q0 + (1 - q0) * (round - 1) / max(1, rounds - 1)


def select(found: Survey, prior: Tensor, *, rule: str, share: float, g: float = 0.5) -> Tensor:
    """(n,) True where a row takes part; at least one row, if there is any.

    rule: "cheapest", the cheapest `share` of all rows; "class", of the rows of each predicted class
        c the cheapest q_c = clip(share * (min w / w_c)^g, 0.1, 1); "none", all rows.
    """
    n = len(found.cost)
    if rule == "none" or n == 0:
        return torch.ones(n, dtype=torch.bool)
    if rule == "cheapest":
        return _cheapest(found.cost, torch.arange(n), share)
    kept = torch.zeros(n, dtype=torch.bool)
    shares = (share * (prior.min() / prior) ** g).clamp(0.1, 1.0)
    for c in found.guess.unique().tolist():
        at = (found.guess == c).nonzero()[:, 0]
        kept[at] = _cheapest(found.cost[at], torch.arange(len(at)), float(shares[c]))
    return kept


def _cheapest(cost: Tensor, at: Tensor, share: float) -> Tensor:
    """True for the cheapest max(1, ceil(share * n)); a tie goes to the earlier row."""
    kept = torch.zeros(len(cost), dtype=torch.bool)
    # of 0.3 * 10 in floating point, 3 rows, not 4
    count = max(1, math.ceil(round(share * len(cost), 6)))
    kept[torch.argsort(cost, stable=True)[:count]] = True
    return kept


def soft_weights(found: Survey, *, temperature: float = 0.1) -> Tensor:
    """(n,) sigmoid((mean cost of the predicted class - cost) / temperature)."""
    classes = len(found.mass)
    count = torch.bincount(found.guess, minlength=classes).clamp_min(1)
    total = torch.zeros(classes, dtype=found.cost.dtype).index_add_(0, found.guess, found.cost)
    return torch.sigmoid(((total / count)[found.guess] - found.cost) / temperature)
