"""Transport between points in long double, with the matrix written out: the kernels' oracle."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

INF = math.inf


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy().astype(np.longdouble)


def costs(x: np.ndarray, y: np.ndarray, metric: int) -> np.ndarray:
    """(n, m) from direct differences: no expansion, no centre."""
    if metric == 2:
        lengths = [np.sqrt((side * side).sum(1, keepdims=True)) for side in (x, y)]
        x, y = (side / np.where(n == 0, 1, n) for side, n in zip((x, y), lengths, strict=True))
        return 1 - x @ y.T
    squares = ((x[:, None] - y[None]) ** 2).sum(-1)
    return squares if metric == 0 else np.sqrt(squares)


def cost_gradient(x: np.ndarray, y: np.ndarray, metric: int) -> np.ndarray:
    """dC_ij / dx_i, (n, m, D)."""
    difference = x[:, None] - y[None]
    if metric == 0:
        return 2 * difference
    if metric == 1:
        length = np.sqrt((difference**2).sum(-1, keepdims=True))
        return difference / np.where(length == 0, 1, length)
    nx, ny = (np.sqrt((side * side).sum(1)) for side in (x, y))
    unit = x / np.where(nx == 0, 1, nx)[:, None], y / np.where(ny == 0, 1, ny)[:, None]
    cosine = unit[0] @ unit[1].T
    gradient = -(unit[1][None] - cosine[..., None] * unit[0][:, None])
    return gradient * np.where(nx == 0, 0, 1 / np.where(nx == 0, 1, nx))[:, None, None]


def _log_sum(z: np.ndarray, axis: int) -> np.ndarray:
    top = z.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return top.squeeze(axis) + np.log2(np.exp2(z - top).sum(axis))


def iterate(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, eps: float, *, scale: float | None = None,
    rho=(INF, INF), steps: int = 10, symmetric: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """`steps` iterations from g = 0: f, g, u, v, r, c, value and linear of one problem."""
    s = np.longdouble(math.log2(math.e) / eps if scale is None else scale)
    ka, kb = (np.longdouble(1 if math.isinf(r) else r / (r + eps)) for r in rho)
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log2(a), np.log2(b)
    K, u, v = -s * cost, log_b, log_b
    for _ in range(steps):
        step = log_a - ka * _log_sum(K + v, 1)
        u = (u + step) / 2 if symmetric else step
        v = u if symmetric else log_b - kb * _log_sum(K + u[:, None], 0)
    plan = np.exp2(K + u[:, None] + v)
    with np.errstate(invalid="ignore"):
        f = np.where(a == 0, -ka * _log_sum(K + v, 1), u - log_a) / s
        g = np.where(b == 0, -kb * _log_sum(K + u[:, None], 0), v - log_b) / s
    value = -eps * (plan.sum() - a.sum() * b.sum())
    for mass, potential, r in ((a, f, rho[0]), (b, g, rho[1])):
        value += (mass * (potential if math.isinf(r) else -r * np.expm1(-potential / r))).sum()
    return {
        "value": value, "linear": (plan * cost).sum(), "f": f, "g": g, "u": u, "v": v,
        "r": plan.sum(1), "c": plan.sum(0),
    }  # fmt: skip
