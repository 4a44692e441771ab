"""Calls whose launches are compiled: every kernel, in the shapes and constants that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from fedkernels.prototype import triton as prototype
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


def _prototypes(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(4096, 256, dtype=dtype), torch.empty(96, 256)


def _assign(metric: int, k: int) -> None:
    x, mu = _prototypes()
    prototype.prototype_assign(x, mu, torch.empty(4096, 96, dtype=torch.bool), metric, k)


def _distance(metric: int, dtype: torch.dtype) -> None:
    x, mu = _prototypes(dtype)
    pairs = torch.empty(4096, 96)
    prototype.prototype_distance(x, mu, metric)
    prototype.prototype_distance_backward(x, mu, pairs, pairs, metric, 3)


def _softmax(metric: int) -> None:
    x, mu = _prototypes()
    prior, mask, pairs = (
        torch.empty(96),
        torch.empty(1, 96, dtype=torch.bool),
        torch.empty(4096, 96),
    )
    prototype.prototype_softmax(x, mu, prior, mask, metric, 0.1, True)
    rows = torch.empty(4096)
    prototype.prototype_softmax_backward(
        x, mu, prior, mask, rows, pairs, rows, prior, metric, 0.1, 7
    )


def _cross_entropy(dtype: torch.dtype, soft: bool) -> None:
    x, mu = _prototypes(dtype)
    target = torch.empty(4096, 96) if soft else torch.empty(4096, dtype=torch.int64)
    weight = torch.empty(96)
    prototype.prototype_cross_entropy(
        x, mu, target, None, None, weight if soft else None, None, 0, 0.1, -100, 2, 3
    )


def _class_sum(soft: bool, classes: int) -> None:
    x, weight = torch.empty(4096, 256), torch.empty(4096)
    labels = torch.empty(4096, classes) if soft else torch.zeros(4096, dtype=torch.int64)
    prototype.class_sum(x, labels, weight, classes)


CASES: dict[str, Callable[[], Any]] = {
    **{f"registers-{n}": partial(_sinkhorn, n, n) for n in (8, 32, 128)},
    "registers-relaxed": partial(_sinkhorn, 31, 29, sor=True, masses=False),
    "matrix": partial(_sinkhorn, 1024, 1024, rho=1.0, sor=True),
    "points": partial(_points, 512, 512, 64, 0),
    "plan": partial(_plan, 64, 64, 64),
    "points-plan": partial(_points_plan, 1024, 1024, 64, 0),
    "conditional": partial(_conditional, 1024, 1024, 64, 1, 0),
    "prototype-assign": partial(_assign, 0, 1),
    "prototype-assign-32": partial(_assign, 2, 32),
    "prototype-distance": partial(_distance, 2, torch.bfloat16),
    "prototype-softmax": partial(_softmax, 0),
    "prototype-cross-entropy": partial(_cross_entropy, torch.float32, False),
    "prototype-cross-entropy-soft": partial(_cross_entropy, torch.bfloat16, True),
    "class-sum": partial(_class_sum, False, 1024),
    "class-sum-soft": partial(_class_sum, True, 96),
}

# What is compiled for one architecture only: variants of what is compiled for all of them.
ON_90 = (
    "prototype-assign-32",
    "prototype-distance",
    "prototype-softmax",
    "prototype-cross-entropy-soft",
    "class-sum-soft",
)


def architectures(case: str, all_of_them: Iterable[int]) -> list[int]:
    return [90] if case in ON_90 else list(all_of_them)
