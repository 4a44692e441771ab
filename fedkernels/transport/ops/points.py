"""Sinkhorn between points x (B|1, n, D) and y (B|1, m, D): no (n, m) matrix is held.

metric is a number: 0 squared Euclidean, 1 Euclidean, 2 cosine. Everything else is as in
``ops/sinkhorn.py``.
"""

from __future__ import annotations

from fedkernels._ops import bound as _bound
from fedkernels._ops import define
from fedkernels.transport.ops.sinkhorn import RESULTS, solution

__all__ = ["NAMES", "bound"]


def _forward(x, y, a, b, eps, sizes, g0, batch, *_):
    return solution(x, batch, x.shape[1], y.shape[1])


def _plan(x, y, eps, sizes, metric, u, v, scale):
    return u.new_empty((u.shape[0], u.shape[1], v.shape[1]))


def _apply(x, y, eps, sizes, metric, u, v, V, transpose):
    rows = v.shape[1] if transpose else u.shape[1]
    return u.new_empty((u.shape[0], rows, V.shape[2]))


def _backward(x, y, eps, sizes, metric, u, v, *_):
    return x.new_empty((*u.shape, x.shape[2])), y.new_empty((*v.shape, y.shape[2]))


define(
    "transport",
    "sinkhorn_points_forward",
    "(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor eps, Tensor? sizes, Tensor? g0, "
    "SymInt batch, int metric, float rho_a, float rho_b, int max_iter, float tol, bool sor, "
    "bool symmetric) -> " + RESULTS,
    _forward,
)
define(
    "transport",
    "sinkhorn_points_plan",
    "(Tensor x, Tensor y, Tensor eps, Tensor? sizes, int metric, Tensor u, Tensor v, "
    "Tensor? scale) -> Tensor",
    _plan,
)
define(
    "transport",
    "sinkhorn_points_apply",
    "(Tensor x, Tensor y, Tensor eps, Tensor? sizes, int metric, Tensor u, Tensor v, Tensor V, "
    "bool transpose) -> Tensor",
    _apply,
)
# W_ij = P_ij (w0 + w1 C_ij + alpha_i + beta_j); dx_i = sum_j W_ij dC_ij/dx_i (B, n, D), and dy
# (B, m, D) likewise: per problem also where x or y is shared.
define(
    "transport",
    "sinkhorn_points_backward",
    "(Tensor x, Tensor y, Tensor eps, Tensor? sizes, int metric, Tensor u, Tensor v, Tensor w0, "
    "Tensor w1, Tensor? alpha, Tensor? beta) -> (Tensor dx, Tensor dy)",
    _backward,
)

NAMES = (
    "sinkhorn_points_forward",
    "sinkhorn_points_plan",
    "sinkhorn_points_apply",
    "sinkhorn_points_backward",
)


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
