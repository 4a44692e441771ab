"""Sums over the rows of each class in plain PyTorch: the specification of `class_sum`.

For x (N, D), row weights w (N,) (None: 1) and labels, hard (N,) or soft (N, K), with s_ik = 1 where
label i is k for hard ones:

    sum_k = sum_i w_i s_ik x_i (K, D)    total_k = sum_i w_i s_ik (K,)    count_k = sum_i s_ik (K,)

A row takes part if its label lies in 0..K-1 and its weight is positive: a row of weight 0 counts
nowhere and may hold anything. Sums of hard labels run in float64 and are rounded once; those of
soft labels are a product, in float32 for float32. Ordinary differentiable PyTorch to x, weight and
soft labels, deterministic on every device and free of TF32.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_sum"]


def class_sum(
    x: Tensor, labels: Tensor, weight: Tensor | None, n_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(sum (K, D), total (K,), count (K,), bad (2,) int64).

    sum, total and the count of soft labels are float64 for a float64 x and float32 otherwise, the
    count of hard labels is int64. bad: the first row whose label is out of range (soft labels: -1)
    and the first whose weight is negative or NaN, -1 where there is none; such rows take no part.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, mass = x.double(), x.new_ones(x.shape[0], dtype=torch.float64)
    taken, bad_label, bad_weight = mass > 0, mass < 0, mass < 0
    if weight is not None:
        taken, bad_weight = weight > 0, ~(weight >= 0)
        mass = weight.double().where(weight >= 0, 0)  # not > 0: the gradient at 0 is the limit
        rows = rows.where(taken[:, None], rows.nan_to_num(0, 0, 0)) * mass[:, None]
    if labels.dim() == 1:
        known = (labels >= 0) & (labels < n_classes)
        bad_label, at = ~known, labels.where(known, 0)
        summed = _added(rows.where(known[:, None], 0), at, n_classes)
        total = _added(mass.where(known, 0), at, n_classes)
        count = _added((taken & known).long(), at, n_classes)
    else:
        # On a GPU a float32 product might be one in TF32.
        wide = dtype if x.device.type == "cpu" else torch.float64
        shares = labels.to(wide).where(taken[:, None], labels.to(wide).nan_to_num(0, 0, 0))
        summed = shares.T @ rows.to(wide)
        total = shares.T.double() @ mass
        count = (shares.double() * taken[:, None]).sum(0).to(dtype)
    bad = torch.stack([_first(bad_label), _first(bad_weight)])
    return summed.to(dtype), total.to(dtype), count, bad


def _added(values: Tensor, at: Tensor, n_classes: int) -> Tensor:
    """Row i of values (N, ...) added to row at_i of zeros (K, ...), in a fixed order."""
    zeros = values.new_zeros(n_classes, *values.shape[1:])
    if values.device.type == "cpu":
        return zeros.index_add(0, at, values)
    return zeros.index_put((at,), values, accumulate=True)  # CUDA: sorted; index_add would race


def _first(rows: Tensor) -> Tensor:
    """The lowest i with rows_i, or -1."""
    found = torch.cat([rows, rows.new_ones(1)]).int().argmax()
    return torch.where(found < rows.shape[0], found, -1)
