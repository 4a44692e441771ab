"""Implicit gradients of Sinkhorn in long double: the oracle of the float64 kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["long_double_implicit"]

_Array = Any


def long_double_implicit(
    C: _Array,
    masses: tuple[_Array, _Array],
    potentials: tuple[_Array, _Array],
    eps: Any,
    rho: tuple[Any, Any],
    G: _Array,
    direct: Any = 0,
) -> tuple[_Array, _Array, _Array]:
    """dC, da, db of one problem and a loss with dL/dP = G, dL/dC = direct P besides.

    The formulas of `transport/implicit.py`, the system eliminated instead of factored. Mass
    gradients of a balanced problem have mean 0.
    """
    (a, b), (f, g) = masses, potentials
    balanced = rho[0] == math.inf and rho[1] == math.inf
    damp = [1 if side == math.inf else 1 + eps / side for side in rho]
    E = np.exp((f[:, None] + g[None] - C) / eps)
    P = a[:, None] * E * b[None]
    i, j = a > 0, b > 0
    kept = P[np.ix_(i, j)]
    rows, columns = damp[0] * kept.sum(1), damp[1] * kept.sum(0)
    row, column = (G * P).sum(1)[i], (G * P).sum(0)[j]
    system = np.diag(columns) - kept.T @ (kept / rows[:, None])
    if balanced:  # (1, -1) is a null vector: of all solutions the one with <beta, columns> = 0
        system = system + columns[:, None] * columns[None] / columns.sum()
    alpha, beta = np.zeros_like(a), np.zeros_like(b)
    beta[j] = _eliminate(system, column - kept.T @ (row / rows))
    alpha[i] = (row - kept @ beta[j]) / rows
    # Rows without mass follow the others: their own equation, over their mass.
    of_rows, of_columns = E * b[None], E * a[:, None]
    own_a = (of_rows * (G - beta[None])).sum(1) / (damp[0] * of_rows.sum(1))
    own_b = (of_columns * (G - alpha[:, None])).sum(0) / (damp[1] * of_columns.sum(0))
    alpha, beta = np.where(i, alpha, own_a), np.where(j, beta, own_b)

    dC = direct * P - P * (G - alpha[:, None] - beta[None]) / eps
    found = []
    for multiplier, potential, side, factor in zip((alpha, beta), (f, g), rho, damp, strict=True):
        ratio = 1 if side == math.inf else np.exp(-potential / side)
        gradient = ratio * factor * multiplier
        found.append(gradient - gradient.mean() if balanced else gradient)
    return dC, found[0], found[1]


def _eliminate(matrix: _Array, right: _Array) -> _Array:
    """matrix^-1 right for a positive definite matrix: Gauss, as numpy has no long double solver."""
    matrix, x = matrix.copy(), right.copy()
    for k in range(len(x)):
        factor = matrix[k + 1 :, k] / matrix[k, k]
        matrix[k + 1 :, k:] -= factor[:, None] * matrix[k, k:]
        x[k + 1 :] -= factor * x[k]
    for k in reversed(range(len(x))):
        x[k] = (x[k] - matrix[k, k + 1 :] @ x[k + 1 :]) / matrix[k, k]
    return x
