"""First centres of k-means: the greedy variant of k-means++.

Each centre after the first is the best of 2 + log k rows drawn with a probability proportional to
their squared distance to the nearest centre so far; best is the one that leaves the smallest sum of
such distances. Arthur and Vassilvitskii (SODA 2007), section 6.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedkernels.prototype.check import wide

__all__ = ["fixed_order_sum", "plus_plus"]

_BLOCK = 1024
_SQEUCLIDEAN = 0


def plus_plus(op: Any, x: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """(k,) int64, on the CPU: the rows of x (N, D) to start from.

    Memory: N (4 + log k) numbers. The bits depend on neither threads nor device but by those of the
    distances: draws are inverted over sums of blocks in a fixed order.
    """
    rows = x.shape[0]
    dtype = wide(x)
    device = "cpu" if generator is None else generator.device
    trials = 2 + int(math.log(k))

    def uniform(count: int) -> Tensor:
        drawn = torch.rand(count, dtype=torch.float64, generator=generator, device=device)
        return drawn.cpu()

    def distances(index: Tensor) -> Tensor:
        found: Tensor = op.prototype_distance(x, x[index.to(x.device)].to(dtype), _SQEUCLIDEAN)
        return found

    chosen = (uniform(1) * rows).long()
    padded = x.new_zeros(-(-rows // _BLOCK) * _BLOCK, dtype=dtype)
    nearest = padded[:rows]
    nearest.copy_(distances(chosen)[:, 0])
    whole = torch.zeros(rows, dtype=torch.int64, device=x.device)
    for _ in range(1, k):
        drawn = _drawn(padded, uniform(trials))
        if drawn is None:  # every row is a centre already
            drawn = (uniform(trials) * rows).long()
        left = distances(drawn)
        torch.minimum(left, nearest[:, None], out=left)
        best = int(op.class_sum(left, whole, None, 1)[0].argmin())
        nearest.copy_(left[:, best])
        chosen = torch.cat([chosen, drawn[best : best + 1]])
    return chosen


def fixed_order_sum(values: Tensor) -> Tensor:
    """() float64: the sum of (N,) in an order that no number of threads changes."""
    values = values.double()
    while values.numel() > _BLOCK:  # a row is never split among threads
        padded = torch.nn.functional.pad(values, (0, -values.numel() % _BLOCK))
        values = padded.view(-1, _BLOCK).sum(1)
    return values.sum()


def _drawn(weights: Tensor, uniform: Tensor) -> Tensor | None:
    """Indices drawn in proportion to weights (a multiple of the block,); None: all are 0.

    Two levels, the small one on the CPU: one read of the weights, and no cumulative sum of N.
    """
    blocks = weights.view(-1, _BLOCK)
    sums = blocks.sum(1, dtype=torch.float64).cpu()
    cumulative = sums.cumsum(0)
    if not cumulative[-1] > 0:
        return None
    target = uniform * cumulative[-1]
    block = _inverse(cumulative.expand(len(uniform), -1), target)
    within = blocks[block.to(weights.device)].double().cpu().cumsum(1)
    return block * _BLOCK + _inverse(within, target - (cumulative - sums)[block])


def _inverse(cumulative: Tensor, target: Tensor) -> Tensor:
    """Per row, the first place whose cumulative weight (L, n) is above the target (L,).

    Where rounding pushed the target past the end: the last place that has a weight.
    """
    found = torch.searchsorted(cumulative.contiguous(), target[:, None], right=True)[:, 0]
    last = (cumulative == cumulative[:, -1:]).int().argmax(1)
    return torch.minimum(found, last)
