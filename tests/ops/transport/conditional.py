"""What the tests of conditional transport share: a call as data, and an independent statement.

The statement is dense numpy in long double: direct differences, softmax by normalising, and the
gradient as the chain rule through both softmaxes, term by term.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels import conditional_transport
from fedkernels.testing import long_double, random_tensor

COSTS = ("cosine", "sqeuclidean")
LOGITS = ("dot", "cosine", "neg_cost")
MODES = tuple(itertools.product(COSTS, LOGITS))
OUTPUTS = ("row_cost", "col_cost", "row_lse", "col_lse")
FIELDS = ("value", "forward", "backward", *OUTPUTS)
TENSORS = ("x", "y", "p", "q")


@dataclass(frozen=True)
class Call:
    """Arguments of `conditional_transport`."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any]

    def run(self, **more: Any):
        return conditional_transport(**self.tensors, **{**self.options, **more})

    def train(self, *names: str) -> Call:
        """The same values as new leaves, of which `names` (all, if none) require gradients."""
        wanted = names or TENSORS
        leaves = {
            n: None if t is None else t.detach().clone().requires_grad_(n in wanted)
            for n, t in self.tensors.items()
        }
        return replace(self, tensors=leaves)

    def to(self, dtype: torch.dtype) -> Call:
        moved = {n: None if t is None else t.detach().to(dtype) for n, t in self.tensors.items()}
        return replace(self, tensors=moved)

    def results(self, **more: Any) -> dict[str, Tensor]:
        """The four outputs, and every gradient of their sum under fixed weights."""
        call = self.train()
        found = call.run(**more)
        outputs = [getattr(found, name) for name in OUTPUTS]
        leaves = {n: t for n, t in call.tensors.items() if t is not None}
        grads = torch.autograd.grad(outputs, list(leaves.values()), self.upstream(outputs))
        named = dict(zip(OUTPUTS, (t.detach() for t in outputs), strict=True))
        return {**named, **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}

    @staticmethod
    def upstream(outputs: list[Tensor]) -> list[Tensor]:
        return [random_tensor(t.shape, dtype=t.dtype, seed=70 + i) for i, t in enumerate(outputs)]

    def exact(self) -> dict[str, np.ndarray]:
        """The same in long double (points with a leading B only)."""
        shapes = [self.tensors["x"].shape[:2], self.tensors["y"].shape[:2]]
        upstream = [
            random_tensor(shape, dtype=torch.float64, seed=70 + i).to(self._result_dtype())
            for i, shape in enumerate((*shapes, *shapes))
        ]
        tensors = {n: None if t is None else long_double(t) for n, t in self.tensors.items()}
        return dense(**tensors, **self.options, upstream=[long_double(g) for g in upstream])

    def _result_dtype(self) -> torch.dtype:
        return torch.float64 if self.tensors["x"].dtype == torch.float64 else torch.float32


def call(
    B: int,
    N: int,
    M: int,
    D: int,
    *,
    cost: str = "cosine",
    logits: str = "dot",
    masses: str = "pq",
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
    spread: float = 8.0,
    offset: float = 0.0,
) -> Call:
    """Points of a network's size, at a temperature under which logits have a range of `spread`."""
    x = random_tensor((B, N, D), dtype=dtype, seed=seed, layout=layout)
    y = random_tensor((B, M, D), dtype=dtype, seed=seed + 1, layout=layout)
    if offset:
        x, y = x + offset, y + offset
    width = max(D, 1) ** 0.5
    sizes = {
        "dot": width,
        "cosine": 1 / width,
        "neg_cost": width if cost == COSTS[1] else 1 / width,
    }
    tensors = {"x": x, "y": y, "p": None, "q": None}
    for name, size in (("p", N), ("q", M)):
        if name in masses:
            mass = random_tensor((B, size), seed=seed + ord(name), dtype=torch.float64).exp()
            tensors[name] = (mass / mass.sum(1, keepdim=True)).to(dtype)
    options = {"cost": cost, "logits": logits, "temperature": 6 * sizes[logits] / spread}
    return Call(tensors, options)


def dense(
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray | None,
    q: np.ndarray | None,
    *,
    cost: str,
    logits: str,
    temperature: float,
    upstream: list[np.ndarray],
) -> dict[str, np.ndarray]:
    difference = x[:, :, None] - y[:, None]
    dot = (x[:, :, None] * y[:, None]).sum(-1)
    lengths = np.sqrt((x * x).sum(-1))[:, :, None], np.sqrt((y * y).sum(-1))[:, None]
    cos = dot / (lengths[0] * lengths[1])
    c = 1 - cos if cost == "cosine" else (difference * difference).sum(-1)
    s = {"dot": dot, "cosine": cos, "neg_cost": -c}[logits] / np.longdouble(temperature)
    g_row, g_col, h_row, h_col = upstream
    B, N, M = s.shape
    mass_x = np.full((B, N), np.longdouble(1) / N) if p is None else p
    mass_y = np.full((B, M), np.longdouble(1) / M) if q is None else q
    rows, row_cost, row_lse = _softmax(s, c, mass_y[:, None, :], 2)
    cols, col_cost, col_lse = _softmax(s, c, mass_x[:, :, None], 1)
    along_rows = g_row[:, :, None] * (c - row_cost[:, :, None]) + h_row[:, :, None]
    along_cols = g_col[:, None] * (c - col_cost[:, None]) + h_col[:, None]
    dc = rows * g_row[:, :, None] + cols * g_col[:, None]
    ds = (rows * along_rows + cols * along_cols) / np.longdouble(temperature)
    if logits == "neg_cost":
        dc, ds = dc - ds, 0 * ds
    dcos = (-dc if cost == "cosine" else 0 * dc) + (ds if logits == "cosine" else 0)
    ddot = dcos / (lengths[0] * lengths[1]) + (ds if logits == "dot" else 0)
    pulled = dcos * cos
    dx = ddot @ y - (pulled / lengths[0] ** 2).sum(2)[..., None] * x
    dy = np.swapaxes(ddot, 1, 2) @ x - (pulled / lengths[1] ** 2).sum(1)[..., None] * y
    if cost == "sqeuclidean":
        dx = dx + 2 * (dc[..., None] * difference).sum(2)
        dy = dy - 2 * (dc[..., None] * difference).sum(1)
    found = dict(zip(OUTPUTS, (row_cost, col_cost, row_lse, col_lse), strict=True))
    found |= {"dx": dx, "dy": dy}
    if p is not None:
        found["dp"] = (cols * along_cols).sum(2) / mass_x
    if q is not None:
        found["dq"] = (rows * along_rows).sum(1) / mass_y
    return found


def _softmax(s: np.ndarray, c: np.ndarray, mass: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    top = s.max(axis, keepdims=True)
    weight = mass * np.exp(s - top)
    total = weight.sum(axis, keepdims=True)
    share = weight / total
    return share, (share * c).sum(axis), np.log(total.squeeze(axis)) + top.squeeze(axis)
