"""Sinkhorn and its envelope gradients in long double: the oracle of the float64 kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fedkernels.testing.budget import long_double
from fedkernels.testing.check.exact_implicit import long_double_implicit

__all__ = ["long_double_cost_gradients", "long_double_costs", "long_double_sinkhorn"]

_Array = Any


def long_double_costs(x: Tensor, y: Tensor, metric: str) -> _Array:
    """The (B, n, m) costs of x (B, n, D) and y (B, m, D)."""
    left, right = long_double(x)[:, :, None], long_double(y)[:, None]
    if metric == "cosine":
        norms = np.sqrt((left * left).sum(-1) * (right * right).sum(-1))
        return 1 - (left * right).sum(-1) / norms
    squares = ((left - right) ** 2).sum(-1)
    return np.sqrt(squares) if metric == "euclidean" else squares


def long_double_cost_gradients(x: Tensor, y: Tensor, metric: str, W: _Array) -> list[_Array]:
    """[sum_j W_ij dC_ij / dx_i (B, n, D), sum_i W_ij dC_ij / dy_j (B, m, D)] of W (B, n, m)."""
    points = [long_double(x)[:, :, None], long_double(y)[:, None]]
    if metric == "cosine":
        norms = [np.sqrt((side * side).sum(-1, keepdims=True)) for side in points]
        unit = [side / norm for side, norm in zip(points, norms, strict=True)]
        cosine = (unit[0] * unit[1]).sum(-1, keepdims=True)
        sides = [(cosine * unit[k] - unit[1 - k]) / norms[k] for k in (0, 1)]
    else:
        gap = points[0] - points[1]
        if metric == "euclidean":
            length = np.sqrt((gap * gap).sum(-1, keepdims=True))
            gap = gap / np.where(length == 0, 1, length) / 2
        sides = [2 * gap, -2 * gap]
    return [(W[..., None] * side).sum(2 - k) for k, side in enumerate(sides)]


def long_double_sinkhorn(
    cost: _Array,
    a: Tensor | None,
    b: Tensor | None,
    sizes: Tensor | None,
    options: Mapping[str, Any],
    weight: Tensor,
    *,
    plan_weight: Tensor | None = None,
    symmetric: bool = False,
) -> dict[str, _Array]:
    """value, linear, f, g, plan after exactly max_iter iterations, and gradients.

    cost (B, n, m) in long double, weight (B,); padding holds 0. With L = logsumexp and
    k = rho / (rho + eps), one iteration is f = -k eps L_j((g - C) / eps + log b), then g likewise;
    symmetric: f = g = (f + that) / 2.
    dcost, da, db are gradients of <weight, value>; with plan_weight (B, n, m) there are "linear d."
    of <weight, linear> and "plan d." of <plan_weight, plan>. Of masses: where both are given.
    """
    batch, n, m = cost.shape
    rows: dict[str, tuple[int, ...]] = {
        "value": (), "linear": (), "f": (n,), "g": (m,), "plan": (n, m), "dcost": (n, m),
        "da": (n,), "db": (m,),
    }  # fmt: skip
    kinds = () if plan_weight is None else ("linear", "plan")
    rows |= {f"{kind} d{k}": rows[f"d{k}"] for kind in kinds for k in ("cost", "a", "b")}
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
        C = cost[k, :i, :j]
        one = _solve(C, left, right, options, symmetric)
        found["value"][k], found["linear"][k] = one["value"], one["linear"]
        found["f"][k, :i], found["g"][k, :j] = one["f"], one["g"]
        found["plan"][k, :i, :j] = one["plan"]
        found["dcost"][k, :i, :j] = weights[k] * one["plan"]
        found["da"][k, :i], found["db"][k, :j] = weights[k] * one["da"], weights[k] * one["db"]
        if plan_weight is None:
            continue
        solution = (one["masses"], (one["f"], one["g"]), one["eps"], one["rho"])
        G = long_double(plan_weight[k, :i, :j])
        for kind, results in (
            ("linear", long_double_implicit(C, *solution, weights[k] * C, weights[k])),
            ("plan", long_double_implicit(C, *solution, G)),
        ):
            for key, result in zip(("cost", "a", "b"), results, strict=True):
                found[f"{kind} d{key}"][k][tuple(slice(s) for s in result.shape)] = result
    return found


def _solve(
    C: _Array, a: _Array, b: _Array, options: Mapping[str, Any], symmetric: bool
) -> dict[str, Any]:
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
        step = -damp_a * eps * _lse((g[None] - C) / eps + log_b[None])
        f = (f + step) / 2 if symmetric else step
        g = f if symmetric else -damp_b * eps * _lse(((f[:, None] - C) / eps + log_a[:, None]).T)
    # Where there is no mass, potentials are the transforms of the ones that are returned.
    at_zero = [
        -damp_a * eps * _lse((g[None] - C) / eps + log_b[None]),
        -damp_b * eps * _lse(((f[:, None] - C) / eps + log_a[:, None]).T),
    ]
    f, g = np.where(a > 0, f, at_zero[0]), np.where(b > 0, g, at_zero[1])
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
    da, db = (
        _mass_gradient(f, a, b.sum(), plan.sum(1), eps, (rho_a, rho_b), entropy),
        _mass_gradient(g, b, a.sum(), plan.sum(0), eps, (rho_b, rho_a), entropy),
    )
    return {
        "value": value, "linear": (plan * C).sum(), "f": f, "g": g, "plan": plan,
        "da": da, "db": db, "masses": (a, b), "eps": eps, "rho": (rho_a, rho_b),
    }  # fmt: skip


def _mass_gradient(
    f: _Array,
    a: _Array,
    other_total: Any,
    r: _Array,
    eps: Any,
    rho: tuple[Any, Any],
    entropy: bool,
) -> _Array:
    """The formulas of `transport/mass.py`; rho is that of the side, then the other's."""
    if rho[0] != math.inf:
        return eps * other_total - (rho[0] + eps) * np.expm1(-f / rho[0]) - eps
    if rho[1] != math.inf:
        return f + eps * (other_total - np.where(a > 0, r / np.where(a > 0, a, 1), 1))
    gradient = f + eps * np.log(np.where(a > 0, a, 1)) if entropy else f
    return gradient - gradient.mean()


def _lse(x: _Array) -> _Array:
    largest = x.max(1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(1))
