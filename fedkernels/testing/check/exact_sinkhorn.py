"""Sinkhorn and its envelope gradients in long double: the oracle of the float64 kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fedkernels.testing.budget import long_double

__all__ = ["long_double_costs", "long_double_sinkhorn"]

_Array = Any


def long_double_costs(x: Tensor, y: Tensor, metric: str) -> _Array:
    """The (B, n, m) costs of x (B, n, D) and y (B, m, D)."""
    left, right = long_double(x)[:, :, None], long_double(y)[:, None]
    if metric == "cosine":
        norms = np.sqrt((left * left).sum(-1) * (right * right).sum(-1))
        return 1 - (left * right).sum(-1) / norms
    squares = ((left - right) ** 2).sum(-1)
    return np.sqrt(squares) if metric == "euclidean" else squares


def long_double_sinkhorn(
    cost: _Array,
    a: Tensor | None,
    b: Tensor | None,
    sizes: Tensor | None,
    options: Mapping[str, Any],
    weight: Tensor,
) -> dict[str, _Array]:
    """value, linear, f, g, plan after exactly max_iter iterations, dcost of sum weight * value.

    cost (B, n, m) in long double, weight (B,); padding holds 0. With L = logsumexp and
    k = rho / (rho + eps), one iteration is f = -k eps L_j((g - C) / eps + log b), then g likewise.
    """
    batch, n, m = cost.shape
    rows = {"value": (), "linear": (), "f": (n,), "g": (m,), "plan": (n, m), "dcost": (n, m)}
    found = {key: np.zeros((batch, *shape), np.longdouble) for key, shape in rows.items()}
    weights = long_double(weight)
    for k in range(batch):
        i, j = (n, m) if sizes is None else (int(s) for s in sizes[k])
        left, right = (
            np.full(size, np.longdouble(1) / size)
            if mass is None
            else long_double(mass if mass.dim() == 1 else mass[k])[:size]
            for mass, size in ((a, i), (b, j))
        )
        one = _solve(cost[k, :i, :j], left, right, options)
        found["value"][k], found["linear"][k] = one["value"], one["linear"]
        found["f"][k, :i], found["g"][k, :j] = one["f"], one["g"]
        found["plan"][k, :i, :j] = one["plan"]
        found["dcost"][k, :i, :j] = weights[k] * one["plan"]
    return found


def _solve(C: _Array, a: _Array, b: _Array, options: Mapping[str, Any]) -> dict[str, _Array]:
    eps, rho = np.longdouble(options["eps"]), options["rho"]
    sides = rho if isinstance(rho, tuple) else (rho, rho)
    rho_a, rho_b = (math.inf if side is None else np.longdouble(side) for side in sides)
    damp_a, damp_b = (1 if side == math.inf else side / (side + eps) for side in (rho_a, rho_b))
    entropy = options.get("reg_type", "kl") == "entropy"
    if rho_a == math.inf and rho_b == math.inf:
        b = b * (a.sum() / b.sum())
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    f = np.zeros_like(a)
    g = -eps * np.where(b > 0, log_b, 0) if entropy else np.zeros_like(b)
    for _ in range(options["max_iter"]):
        f = -damp_a * eps * _lse((g[None] - C) / eps + log_b[None])
        g = -damp_b * eps * _lse(((f[:, None] - C) / eps + log_a[:, None]).T)
    plan = a[:, None] * b[None] * np.exp((f[:, None] + g[None] - C) / eps)
    value = -eps * (plan.sum() - a.sum() * b.sum())
    for mass, potential, side in ((a, f, rho_a), (b, g, rho_b)):
        gain = potential if side == math.inf else -side * np.expm1(-potential / side)
        value = value + (mass * gain).sum()
    if entropy:
        logs = sum(
            (mass * np.where(mass > 0, log, 0)).sum() for mass, log in ((a, log_a), (b, log_b))
        )
        value = value + eps * (logs + a.sum() - a.sum() ** 2)
    return {"value": value, "linear": (plan * C).sum(), "f": f, "g": g, "plan": plan}


def _lse(x: _Array) -> _Array:
    largest = x.max(1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(1))
