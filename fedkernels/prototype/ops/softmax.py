"""Softmax over prototypes, and its cross-entropy, without an (N, K) array but ``prob``.

logit_ij = -distance_ij / temperature + log_prior_j. log_prior (K,), class_weight (K,) and
row_weight (N,) are T; mask is bool (1, K) or (N, K). Everything else is as in ``ops/distance.py``;
formulas: ``reference/softmax.py``, ``reference/cross_entropy.py``.
"""

from __future__ import annotations

import torch

from fedkernels._ops import bound as _bound
from fedkernels._ops import define
from fedkernels.prototype.ops.distance import NEED_MU, NEED_PRIOR, NEED_X

__all__ = ["MEAN", "NAMES", "NONE", "SUM", "bound"]

# reduction of the cross-entropy
NONE, SUM, MEAN = range(3)


def _gradients(x, mu, need):
    return (
        x.new_empty(x.shape if need & NEED_X else (0,)),
        mu.new_empty(mu.shape if need & NEED_MU else (0,)),
        mu.new_empty(mu.shape[:1] if need & NEED_PRIOR else (0,)),
    )


def _softmax(x, mu, log_prior, mask, metric, temperature, want_prob):
    n, k = x.shape[0], mu.shape[0]
    return (
        mu.new_empty((n, k) if want_prob else (0,)),
        mu.new_empty(n),
        mu.new_empty(k),
    )


def _softmax_backward(x, mu, *rest):
    return _gradients(x, mu, rest[-1])


def _cross_entropy(x, mu, *rest):
    reduction, need = rest[-2:]
    return (
        mu.new_empty(x.shape[:1] if reduction == NONE else ()),
        *_gradients(x, mu, need),
        mu.new_empty((), dtype=torch.int64),
    )


# mass_j = sum_i prob_ij; lse is -inf where everything is masked.
define(
    "prototype",
    "prototype_softmax",
    "(Tensor x, Tensor mu, Tensor? log_prior, Tensor? mask, int metric, float temperature, "
    "bool want_prob) -> (Tensor prob, Tensor lse, Tensor mass)",
    _softmax,
)
define(
    "prototype",
    "prototype_softmax_backward",
    "(Tensor x, Tensor mu, Tensor? log_prior, Tensor? mask, Tensor lse, Tensor? g_prob, "
    "Tensor? g_lse, Tensor? g_mass, int metric, float temperature, int need) "
    "-> (Tensor dx, Tensor dmu, Tensor dlog_prior)",
    _softmax_backward,
)
# target int64 (N,) or T (N, K). The gradients are those of the reduced loss for upstream 1, each
# row's times row_weight, from the same pass over x. bad () int64: the first row whose label is
# neither a class nor ignore_index, -1 if none.
define(
    "prototype",
    "prototype_cross_entropy",
    "(Tensor x, Tensor mu, Tensor target, Tensor? log_prior, Tensor? mask, Tensor? class_weight, "
    "Tensor? row_weight, int metric, float temperature, int ignore_index, int reduction, "
    "int need) -> (Tensor loss, Tensor dx, Tensor dmu, Tensor dlog_prior, Tensor bad)",
    _cross_entropy,
)

NAMES = ("prototype_softmax", "prototype_softmax_backward", "prototype_cross_entropy")


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
