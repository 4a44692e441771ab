"""Sinkhorn on a cost matrix: cost (B|1, n, m); a leading 1 is shared by all ``batch`` problems.

T = cost's dtype, float32 or float64 (CUDA and Triton: float32 alone). eps is float64 always, sizes
(B, 2) int64. u and v are the potentials in log2 units as the kernel ended, masses included:

    P_ij = exp2(fma(-C_ij, s, u_i) + v_j)        s = T(log2(e) / eps)

The plan, its products and every gradient are computed from u and v by that expression, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels._ops import bound as _bound
from fedkernels._ops import define

__all__ = ["NAMES", "RESULTS", "bound", "solution"]

# What both forward functions return, in this order.
RESULTS = (
    "(Tensor value, Tensor linear, Tensor f, Tensor g, Tensor u, Tensor v, Tensor r, Tensor c, "
    "Tensor n_iter, Tensor error, Tensor status)"
)


def solution(like: Tensor, batch: int, n: int, m: int) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes and dtypes of RESULTS."""

    def empty(*shape: int) -> Tensor:
        return like.new_empty(shape)

    return (
        empty(batch), empty(batch), empty(batch, n), empty(batch, m), empty(batch, n),
        empty(batch, m), empty(batch, n), empty(batch, m),
        like.new_empty((batch,), dtype=torch.int32), empty(batch),
        like.new_empty((batch,), dtype=torch.uint8),
    )  # fmt: skip


def _forward(cost, a, b, eps, sizes, g0, batch, *_):
    return solution(cost, batch, cost.shape[1], cost.shape[2])


def _plan(cost, eps, sizes, u, v, scale):
    return u.new_empty((u.shape[0], u.shape[1], v.shape[1]))


def _apply(cost, eps, sizes, u, v, V, transpose):
    rows = v.shape[1] if transpose else u.shape[1]
    return u.new_empty((u.shape[0], rows, V.shape[2]))


define(
    "transport",
    "sinkhorn_forward",
    "(Tensor cost, Tensor? a, Tensor? b, Tensor eps, Tensor? sizes, Tensor? g0, SymInt batch, "
    "float rho_a, float rho_b, int max_iter, float tol, bool log, bool sor) -> " + RESULTS,
    _forward,
)
# scale_b * P of each problem, (B, n, m); 0 in the padding. Where scale_b is 0 nothing is evaluated:
# a problem of NaN then has the gradient 0.
define(
    "transport",
    "sinkhorn_plan",
    "(Tensor cost, Tensor eps, Tensor? sizes, Tensor u, Tensor v, Tensor? scale) -> Tensor",
    _plan,
)
# P V for V (B, m, d), or P^T V for V (B, n, d).
define(
    "transport",
    "sinkhorn_apply",
    "(Tensor cost, Tensor eps, Tensor? sizes, Tensor u, Tensor v, Tensor V, bool transpose) "
    "-> Tensor",
    _apply,
)

NAMES = ("sinkhorn_forward", "sinkhorn_plan", "sinkhorn_apply")


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
