"""What the tests of class means share: a call as data, and an independent statement.

The statement is numpy in long double: one row after the other, and the gradient of the formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels import class_mean
from fedkernels.testing import long_double, random_tensor

TENSORS = ("x", "labels", "weight", "previous")
ORDERS = ("random", "sorted", "skewed")


@dataclass(frozen=True)
class Call:
    """Arguments of `class_mean`."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any]

    def run(self, **more: Any):
        return class_mean(**self.tensors, **{**self.options, **more})

    def train(self) -> Call:
        """The same values as new leaves; all that is floating requires a gradient."""
        leaves = {
            n: None if t is None else t.detach().clone().requires_grad_(t.is_floating_point())
            for n, t in self.tensors.items()
        }
        return replace(self, tensors=leaves)

    def to(self, dtype: torch.dtype) -> Call:
        moved = {
            n: t if t is None or not t.is_floating_point() else t.detach().to(dtype)
            for n, t in self.tensors.items()
        }
        return replace(self, tensors=moved)

    def results(self, **more: Any) -> dict[str, Tensor]:
        """mean, count, and every gradient of the mean under fixed weights."""
        call = self.train()
        found = call.run(**more)
        leaves = {n: t for n, t in call.tensors.items() if t is not None and t.requires_grad}
        upstream = random_tensor(found.mean.shape, dtype=found.mean.dtype, seed=70)
        grads = torch.autograd.grad(found.mean, list(leaves.values()), upstream)
        named = {"mean": found.mean.detach(), "count": found.count}
        return {**named, **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}

    def exact(self) -> dict[str, np.ndarray]:
        """The same in long double."""
        wide = torch.float64 if self.tensors["x"].dtype == torch.float64 else torch.float32
        k, d = self.options["n_classes"], self.tensors["x"].shape[1]
        upstream = long_double(random_tensor((k, d), dtype=wide, seed=70))
        labels = self.tensors["labels"]
        values = {
            n: None if self.tensors[n] is None else long_double(self.tensors[n])
            for n in ("x", "weight", "previous")
        }
        values["labels"] = labels.numpy() if labels.dim() == 1 else long_double(labels)
        return dense(**values, **self.options, upstream=upstream)


def call(
    N: int,
    K: int,
    D: int,
    *,
    soft: bool = False,
    weighted: bool = False,
    momentum: float | None = None,
    dtype: torch.dtype = torch.float32,
    order: str = "random",
    layout: str = "contiguous",
    seed: int = 0,
) -> Call:
    """Hard labels leave the last class of several empty; weights are 0 in every fifth row."""
    x = random_tensor((N, D), dtype=dtype, seed=seed, layout=layout)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, max(K - 1, 1), (N,), generator=generator)
    if order == "sorted":
        labels = labels.sort().values
    elif order == "skewed":
        labels = torch.where(torch.rand(N, generator=generator) < 0.9, 0, labels)
    weight = None
    if soft:
        labels = torch.rand(N, K, generator=generator).to(dtype)
    if weighted:
        weight = torch.rand(N, generator=generator).to(dtype)
        weight[::5] = 0
    tensors = {"x": x, "labels": labels, "weight": weight, "previous": None}
    if momentum is not None:
        tensors["previous"] = random_tensor((K, D), dtype=dtype, seed=seed + 2)
    return Call(tensors, {"n_classes": K, "momentum": momentum})


def dense(
    x: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None,
    previous: np.ndarray | None,
    *,
    n_classes: int,
    momentum: float | None,
    upstream: np.ndarray,
) -> dict[str, np.ndarray]:
    w = np.ones(len(x), np.longdouble) if weight is None else weight
    soft = labels.ndim == 2

    def added(rows: np.ndarray) -> np.ndarray:
        """sum_i s_ik rows_i"""
        total = np.zeros((n_classes, *rows.shape[1:]), rows.dtype)
        if soft:
            return total + np.tensordot(labels, rows, (0, 0))
        np.add.at(total, labels, rows)
        return total

    total = added(w)
    filled = total != 0
    safe = np.where(filled, total, 1)
    mean = added(w[:, None] * x) / safe[:, None]
    share = np.longdouble(1 if momentum is None else 1 - momentum)
    old = np.zeros_like(mean) if previous is None else previous
    moved = mean if momentum is None else np.longdouble(momentum) * old + share * mean
    g = share * np.where(filled, 1 / safe, 0)[:, None] * upstream
    offset = (g * mean).sum(1)
    found = {
        "mean": np.where(filled[:, None], moved, old),
        "count": added((w > 0).astype(np.longdouble if soft else np.int64)),
        "dx": w[:, None] * (labels @ g if soft else g[labels]),
    }
    if soft:
        each = x @ g.T - offset  # of w_i s_ik
        found["dlabels"] = w[:, None] * each
    if weight is not None:
        mine = (labels * each).sum(1) if soft else (x * g[labels]).sum(1) - offset[labels]
        found["dweight"] = mine
    if previous is not None:
        kept = np.longdouble(0 if momentum is None else momentum)
        found["dprevious"] = np.where(filled[:, None], kept, 1) * upstream
    return found
