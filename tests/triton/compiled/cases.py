"""Calls whose launches are compiled: every kernel, in the shapes and constants that differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedkernels.transport import triton

INF = math.inf


def _eps(batch: int) -> torch.Tensor:
    return torch.ones(batch, dtype=torch.float64)


def _sinkhorn(n: int, m: int, *, rho=INF, sor=False, masses=True) -> None:
    batch = 4
    a, b = (torch.empty(batch, k) if masses else None for k in (n, m))
    cost = torch.empty(batch, n, m)
    triton.sinkhorn_forward(
        cost, a, b, _eps(batch), None, None, batch, rho, rho, 2, 1e-5, False, sor
    )


def _points(n: int, m: int, D: int, metric: int) -> None:
    x, y = torch.empty(2, n, D), torch.empty(2, m, D)
    triton.sinkhorn_points_forward(
        x, y, None, None, _eps(2), None, None, 2, metric, INF, INF, 2, 1e-5, False, False
    )


def _plan(n: int, m: int, width: int) -> None:
    cost, u, v = torch.empty(2, n, m), torch.empty(2, n), torch.empty(2, m)
    triton.sinkhorn_plan(cost, _eps(2), None, u, v, torch.empty(2))
    triton.sinkhorn_apply(cost, _eps(2), None, u, v, torch.empty(2, m, width), False)
    triton.sinkhorn_apply(cost, _eps(2), None, u, v, torch.empty(2, n, width), True)


def _points_plan(n: int, m: int, D: int, metric: int) -> None:
    x, y, u, v = (torch.empty(2, *s) for s in ((n, D), (m, D), (n,), (m,)))
    first = x, y, _eps(2), None, metric, u, v
    triton.sinkhorn_points_plan(*first, None)
    for width in (1, D):
        triton.sinkhorn_points_apply(*first, torch.empty(2, m, width), False)
    w = torch.empty(2)
    triton.sinkhorn_points_backward(*first, w, w, torch.empty(2, n), torch.empty(2, m))


def _conditional(n: int, m: int, D: int, cost: int, logits: int) -> None:
    x, y, p, q = (torch.empty(2, *s) for s in ((n, D), (m, D), (n,), (m,)))
    found = triton.conditional_transport_forward(x, y, p, q, cost, logits, 0.5)
    grads = [torch.empty_like(one) for one in found]
    triton.conditional_transport_backward(x, y, p, q, *found, *grads, cost, logits, 0.5, 15)


CASES: dict[str, Callable[[], Any]] = {
    **{f"registers-{n}": partial(_sinkhorn, n, n) for n in (8, 32, 128)},
    "registers-relaxed": partial(_sinkhorn, 31, 29, sor=True, masses=False),
    "matrix": partial(_sinkhorn, 1024, 1024, rho=1.0, sor=True),
    "points": partial(_points, 512, 512, 64, 0),
    "plan": partial(_plan, 64, 64, 64),
    "points-plan": partial(_points_plan, 1024, 1024, 64, 0),
    "conditional": partial(_conditional, 1024, 1024, 64, 1, 0),
}
