"""Sums over the rows of each class: x (N, D) in its dtype S, everything else T (ops/distance.py).

labels are int64 (N,) or soft, T (N, K); weight T (N,). Tensors are contiguous. Formulas, rows that
take no part and ``bad``: ``reference/class_sum.py``.
"""

from __future__ import annotations

import torch

from fedkernels._ops import bound as _bound
from fedkernels._ops import define

__all__ = ["NAMES", "bound"]


def _class_sum(x, labels, weight, n_classes):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.new_empty((n_classes, x.shape[1]), dtype=dtype),
        x.new_empty(n_classes, dtype=dtype),
        x.new_empty(n_classes, dtype=torch.int64 if labels.dim() == 1 else dtype),
        x.new_empty(2, dtype=torch.int64),
    )


define(
    "prototype",
    "class_sum",
    "(Tensor x, Tensor labels, Tensor? weight, int n_classes) "
    "-> (Tensor sum, Tensor total, Tensor count, Tensor bad)",
    _class_sum,
)

NAMES = ("class_sum",)


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
