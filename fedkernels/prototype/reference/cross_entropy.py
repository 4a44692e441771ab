"""Cross-entropy of a softmax over prototypes, and its gradients, in plain PyTorch.

    loss_i = sum_j w_j t_ij (lse_i - logit_ij)      v_i = sum_j w_j t_ij

with t_ij = 1 where j is row i's label, or the soft target, and class weights w (None: 1). A term
whose w_j t_ij is 0 is 0. "sum" adds the rows; "mean" divides by sum_i v_i (0/0 is NaN). Rows that
are ignored, and rows with nothing that is not masked, have loss 0, v 0 and no gradient. A label
whose prototype is masked: loss inf, and the gradient of lse over what is not masked.

A row whose label is neither a class nor ``ignore_index`` has loss NaN and no gradient; ``bad`` is
the first such row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels.prototype.reference.softmax import (
    allowed_pairs,
    logits,
    pull_logits,
    row_lse,
    usable,
)

__all__ = ["prototype_cross_entropy"]

_NONE, _SUM, _MEAN = range(3)


def prototype_cross_entropy(
    x: Tensor,
    mu: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    class_weight: Tensor | None,
    row_weight: Tensor | None,
    metric: int,
    temperature: float,
    ignore_index: int,
    reduction: int,
    need: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss (N,) or (), dx, dmu, dlog_prior, bad () int64); loss is differentiable.

    dx, dmu and dlog_prior are the gradients for an upstream of 1, each row's times ``row_weight``;
    those that ``need`` leaves out have no elements. reduction: 0 none, 1 sum, 2 mean.
    """
    weight, active, bad = _weights(target, mu, class_weight, ignore_index)
    mu = usable(mu, log_prior, mask)
    allowed = allowed_pairs(log_prior, mask)
    if allowed is not None:
        active = active & allowed.any(1)
    weight = torch.where(active[:, None], weight, 0.0)
    # What takes no part is 0 and not multiplied by 0: its values may be anything.
    points = torch.where(active[:, None], x, 0.0)
    distance, logit = logits(points, mu, log_prior, mask, metric, temperature)
    lse = row_lse(logit)
    apart = torch.where(weight == 0, 0.0, lse[:, None] - logit)
    loss = torch.where(bad, torch.nan, (weight * apart).sum(1))
    value = weight.sum(1)
    total = value.double().sum() if reduction == _MEAN else value.new_ones((), dtype=torch.float64)
    first = torch.where(bad, torch.arange(len(bad), device=x.device), len(bad))
    first = first.amin() if len(bad) else bad.new_full((), -1, dtype=torch.int64)
    first = torch.where(first == len(bad), -1, first)
    found = (x.new_empty(0), mu.new_empty(0), mu.new_empty(0))
    if need:
        with torch.no_grad():
            part = (value != 0) | (weight != 0).any(1)
            prob = (logit - torch.where(lse == -torch.inf, 0.0, lse)[:, None]).exp()
            rows = (1 / total).to(mu.dtype).expand(len(x))
            rows = rows if row_weight is None else rows * row_weight
            pull = rows[:, None] * (value[:, None] * prob - weight)
            pull = torch.where(part[:, None] & (rows != 0)[:, None], pull, 0.0)
            pull = pull if allowed is None else torch.where(allowed, pull, 0.0)
            found = pull_logits(x, mu, distance, pull, metric, temperature, need)
    if reduction != _NONE:
        loss = (loss.double().sum() / total).to(mu.dtype)
    return loss, *found, first


def _weights(
    target: Tensor, mu: Tensor, class_weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """w_j t_ij (N, K), which rows take part, and which labels are out of range."""
    classes = mu.shape[0]
    if target.dim() == 2:
        weight = target if class_weight is None else target * class_weight
        whole = torch.ones_like(target[:, 0], dtype=torch.bool)
        return weight, whole, ~whole
    ignored = target == ignore_index
    active = ~ignored & (target >= 0) & (target < classes)
    label = torch.where(active, target, 0)
    one = torch.arange(classes, device=target.device) == label[:, None]
    weight = one.to(mu.dtype)
    return weight if class_weight is None else weight * class_weight, active, ~ignored & ~active
