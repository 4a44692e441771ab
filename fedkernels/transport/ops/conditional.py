"""Conditional transport: x (B, N, D), y (B, M, D), p (B, N) or None, q (B, M) or None.

T = x's dtype, float32 or float64 (CUDA and Triton: float32 alone); tensors are contiguous. cost is
0 (cosine) or 1 (squared Euclidean), logits 0 (dot), 1 (cosine) or 2 (minus the cost). None masses
are 1/N and 1/M each. Formulas, zero vectors and empty sides: ``reference/conditional.py``.
"""

from __future__ import annotations

from fedkernels._ops import bound as _bound
from fedkernels._ops import define

__all__ = ["NAMES", "NEED_P", "NEED_Q", "NEED_X", "NEED_Y", "bound"]

# Bits of ``need``; a gradient that is not needed comes back with no elements.
NEED_X, NEED_Y, NEED_P, NEED_Q = (1 << i for i in range(4))


def _forward(x, y, *_):
    rows, columns = x.shape[:2], y.shape[:2]
    return x.new_empty(rows), x.new_empty(columns), x.new_empty(rows), x.new_empty(columns)


def _backward(x, y, p, q, *rest):
    need = rest[-1]
    return (
        x.new_empty(x.shape if need & NEED_X else (0,)),
        x.new_empty(y.shape if need & NEED_Y else (0,)),
        x.new_empty(x.shape[:2] if need & NEED_P else (0,)),
        x.new_empty(y.shape[:2] if need & NEED_Q else (0,)),
    )


define(
    "transport",
    "conditional_transport_forward",
    "(Tensor x, Tensor y, Tensor? p, Tensor? q, int cost, int logits, float temperature) "
    "-> (Tensor row_cost, Tensor col_cost, Tensor row_lse, Tensor col_lse)",
    _forward,
)
define(
    "transport",
    "conditional_transport_backward",
    "(Tensor x, Tensor y, Tensor? p, Tensor? q, Tensor row_cost, Tensor col_cost, Tensor row_lse, "
    "Tensor col_lse, Tensor g_row_cost, Tensor g_col_cost, Tensor g_row_lse, Tensor g_col_lse, "
    "int cost, int logits, float temperature, int need) "
    "-> (Tensor dx, Tensor dy, Tensor dp, Tensor dq)",
    _backward,
)

NAMES = ("conditional_transport_forward", "conditional_transport_backward")


def bound(suffix: str) -> dict[str, object]:
    return _bound(NAMES, suffix)
