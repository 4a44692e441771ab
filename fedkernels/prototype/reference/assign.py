"""The nearest prototypes in plain PyTorch.

Candidates are the prototypes whose distance by ``prototype_distance`` is at most the k-th smallest
plus what that distance errs by, 8 eps (|x'|^2 + |mu'|^2) for squares. They are ranked by direct
differences of x and mu as given (cosine, dot: by products summed in one order), and these are the
distances that are returned; ties go to the lowest index. By the expansion alone two clusters at
+-1e4 with spread 1 would name a wrong nearest for 94 to 99 % of the rows.

A NaN or +inf distance is never among the nearest; slots without a prototype are (inf, -1). A row
that may use some prototypes and has NaN for all of them is (NaN, -1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels.prototype.reference.distance import (
    COSINE,
    DOT,
    EUCLIDEAN,
    SQEUCLIDEAN,
    centre,
    prototype_distance,
    traced,
    unit,
)

__all__ = ["distance_to", "prototype_assign"]

_PAIRS = 1 << 20  # numbers that are gathered at a time


@torch.no_grad()
def prototype_assign(
    x: Tensor, mu: Tensor, mask: Tensor | None, metric: int, k: int
) -> tuple[Tensor, Tensor]:
    """(distance (N, k), index (N, k) int64). Not differentiable: see ``distance_to``."""
    squared = SQEUCLIDEAN if metric == EUCLIDEAN else metric
    value = prototype_distance(x, mu, squared)
    unknown = value.isnan()
    usable = ~unknown & (value != torch.inf)
    if mask is not None:
        usable, unknown = usable & mask, unknown | ~mask
    lost = unknown.all(1)
    if mask is not None:
        lost &= mask.any(1)
    value = torch.where(usable, value, torch.inf)
    last = value.kthvalue(min(k, value.shape[1]), dim=1, keepdim=True).values
    slack = 8 * torch.finfo(value.dtype).eps * _size(x, mu, squared)
    value = _exact(x, mu, usable & (value <= last + slack), squared)
    value, index = value.sort(dim=1, stable=True)
    value, index = value[:, :k], index[:, :k]
    index = torch.where(value == torch.inf, -1, index)
    if metric == EUCLIDEAN:
        value = value.sqrt()
    value = torch.where(lost[:, None], torch.nan, value)
    missing = k - value.shape[1]
    if missing > 0:
        empty = torch.where(lost, torch.nan, torch.inf).to(value.dtype)
        value = torch.cat([value, empty[:, None].expand(-1, missing)], 1)
        index = torch.cat([index, index.new_full((len(index), missing), -1)], 1)
    return value.contiguous(), index.contiguous()


def distance_to(x: Tensor, mu: Tensor, metric: int) -> Tensor:
    """(n,): the distance of x_i to mu_i for two (n, D), in mu's dtype, differentiable."""
    left = x.to(mu.dtype)
    if metric == DOT:
        return -(left * mu).sum(1)
    if metric == COSINE:
        (left, _), (right, _) = unit(left), unit(mu)
        distance = 1 - (left * right).sum(1)
        close = distance < 64 * torch.finfo(mu.dtype).eps
        return torch.where(close, 0.5 * (left - right).square().sum(1), distance)
    square = (left - mu).square().sum(1)
    if metric == SQEUCLIDEAN:
        return square
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _exact(x: Tensor, mu: Tensor, candidates: Tensor, metric: int) -> Tensor:
    """(N, K): the distances of the candidates, inf elsewhere."""
    if traced():
        rows = x[:, None].expand(-1, mu.shape[0], -1).flatten(0, 1)
        columns = mu.expand(x.shape[0], -1, -1).flatten(0, 1)
        found = distance_to(rows, columns, metric).unflatten(0, candidates.shape)
        return torch.where(candidates, found, torch.inf)
    rows, columns = candidates.nonzero(as_tuple=True)
    step = max(_PAIRS // max(x.shape[1], 1), 1)
    exact = [
        distance_to(x[i], mu[j], metric)
        for i, j in zip(rows.split(step), columns.split(step), strict=True)
    ]
    value = mu.new_full(candidates.shape, torch.inf)
    value[rows, columns] = torch.cat(exact)
    return value


def _size(x: Tensor, mu: Tensor, metric: int) -> Tensor:
    """The size of the terms of a distance, (N, K) or less: what its rounding is measured by."""
    left = x.to(mu.dtype)
    if metric == COSINE:
        return mu.new_ones(1, 1)
    if metric == DOT:
        return left.norm(dim=1)[:, None] * mu.norm(dim=1)
    c = centre(x, mu)
    size = (left - c).square().sum(1)[:, None] + (mu - c).square().sum(1)
    return torch.where(size.isfinite(), size, 0.0)
