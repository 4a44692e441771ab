"""Distances of points x (N, D) to prototypes mu (K, D), and which prototypes are nearest.

x keeps its dtype S, mu and all results are T: float64 where S is float64, else float32 (CUDA and
Triton: float32 alone). Tensors are contiguous. metric is 0 (squared Euclidean), 1 (Euclidean), 2
(cosine) or 3 (dot). Formulas, close pairs and what is not finite: ``reference/distance.py``.
"""

from __future__ import annotations

import torch

from fedkernels._ops import bound as _bound
from fedkernels._ops import define

__all__ = ["NAMES", "NEED_MU", "NEED_PRIOR", "NEED_X", "bound"]

# Bits of ``need``; a gradient that is not needed comes back with no elements. dx is S, others T.
NEED_X, NEED_MU, NEED_PRIOR = (1 << i for i in range(3))


def _distance(x, mu, metric):
    return mu.new_empty(x.shape[0], mu.shape[0])


def _backward(x, mu, distance, grad, metric, need):
    return (
        x.new_empty(x.shape if need & NEED_X else (0,)),
        mu.new_empty(mu.shape if need & NEED_MU else (0,)),
    )


def _assign(x, mu, mask, metric, k):
    shape = (x.shape[0], k)
    return mu.new_empty(shape), mu.new_empty(shape, dtype=torch.int64)


define(
    "prototype",
    "prototype_distance",
    "(Tensor x, Tensor mu, int metric) -> Tensor",
    _distance,
)
# ``distance`` is what the forward returned: no product is repeated.
define(
    "prototype",
    "prototype_distance_backward",
    "(Tensor x, Tensor mu, Tensor distance, Tensor grad, int metric, int need) "
    "-> (Tensor dx, Tensor dmu)",
    _backward,
)
# mask bool (1, K) or (N, K), True: may be used. 1 <= k <= 32; slots without a prototype are
# (inf, -1). index is int64.
define(
    "prototype",
    "prototype_assign",
    "(Tensor x, Tensor mu, Tensor? mask, int metric, int k) -> (Tensor distance, Tensor index)",
    _assign,
)

NAMES = ("prototype_distance", "prototype_distance_backward", "prototype_assign")


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
