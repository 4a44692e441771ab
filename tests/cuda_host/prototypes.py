"""The CUDA kernels of prototypes on the host: called as the ops are, with the same arguments.

Results are NaN before a call, so that what a kernel leaves out shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tests.cuda_host.build import Program

__all__ = ["SOURCE", "Kernels"]

SOURCE = Path(__file__).parent / "kernels" / "prototype.cpp"
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, -7 if dtype == torch.int64 else math.nan, dtype=dtype)


@dataclass(frozen=True)
class Kernels:
    """The primitives of the family. options: of `Program.call`."""

    program: Program
    options: dict = field(default_factory=dict)

    def _call(self, name: str, *arguments) -> None:
        self.program.call(name, *arguments, **self.options)

    def prototype_distance(self, x: Tensor, mu: Tensor, metric: int) -> Tensor:
        found = _empty(len(x), len(mu))
        self._call("prototype_distance", x, _KINDS[x.dtype], mu, *_sizes(x, mu), metric, found)
        return found

    def prototype_distance_backward(
        self, x: Tensor, mu: Tensor, distance: Tensor, grad: Tensor, metric: int, need: int
    ) -> tuple[Tensor, ...]:
        found = _gradients(x, mu, need)[:2]
        self._call(
            "prototype_distance_backward", x, _KINDS[x.dtype], mu, distance, grad, *_sizes(x, mu),
            metric, *found,
        )  # fmt: skip
        return _given(found, x, mu)

    def prototype_assign(
        self, x: Tensor, mu: Tensor, mask: Tensor | None, metric: int, k: int
    ) -> tuple[Tensor, Tensor]:
        found = _empty(len(x), k), _empty(len(x), k, dtype=torch.int64)
        self._call(
            "prototype_assign", x, _KINDS[x.dtype], mu, *_mask(mask, mu), *_sizes(x, mu), metric, k,
            *found,
        )  # fmt: skip
        return found

    def prototype_softmax(
        self, x: Tensor, mu: Tensor, log_prior: Tensor | None, mask: Tensor | None, metric: int,
        temperature: float, want_prob: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        prob = _empty(len(x), len(mu)) if want_prob else None
        found = _empty(len(x)), _empty(len(mu))
        self._call(
            "prototype_softmax", x, _KINDS[x.dtype], mu, log_prior, *_mask(mask, mu),
            *_sizes(x, mu), metric, float(temperature), prob, *found,
        )  # fmt: skip
        return (_empty(0) if prob is None else prob), *found

    def prototype_softmax_backward(
        self, x: Tensor, mu: Tensor, log_prior: Tensor | None, mask: Tensor | None, lse: Tensor,
        g_prob: Tensor | None, g_lse: Tensor | None, g_mass: Tensor | None, metric: int,
        temperature: float, need: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        found = _gradients(x, mu, need)
        self._call(
            "prototype_softmax_backward", x, _KINDS[x.dtype], mu, log_prior, *_mask(mask, mu), lse,
            g_prob, g_lse, g_mass, *_sizes(x, mu), metric, float(temperature), *found,
        )  # fmt: skip
        return _given(found, x, mu)

    def prototype_cross_entropy(
        self, x: Tensor, mu: Tensor, target: Tensor, log_prior: Tensor | None, mask: Tensor | None,
        class_weight: Tensor | None, row_weight: Tensor | None, metric: int, temperature: float,
        ignore_index: int, reduction: int, need: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        loss = _empty(len(x)) if reduction == 0 else _empty()
        found = _gradients(x, mu, need)
        bad = _empty(dtype=torch.int64)
        targets = (target, None) if target.dim() == 1 else (None, target)
        self._call(
            "prototype_cross_entropy", x, _KINDS[x.dtype], mu, *targets, log_prior,
            *_mask(mask, mu), class_weight, row_weight, *_sizes(x, mu), metric, float(temperature),
            ignore_index, reduction, loss, *found, bad,
        )  # fmt: skip
        return (loss, *_given(found, x, mu), bad)

    def class_sum(
        self, x: Tensor, labels: Tensor, weight: Tensor | None, n_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hard = labels.dim() == 1
        given = (labels, None) if hard else (None, labels)
        summed, total = _empty(n_classes, x.shape[1]), _empty(n_classes)
        count = _empty(n_classes, dtype=torch.int64 if hard else torch.float32)
        bad = _empty(2, dtype=torch.int64)
        self._call(
            "class_sum", x, _KINDS[x.dtype], *given, weight, len(x), n_classes, x.shape[1], summed,
            total, count if hard else None, None if hard else count, bad,
        )  # fmt: skip
        return summed, total, count, bad


def _sizes(x: Tensor, mu: Tensor) -> tuple[int, int, int]:
    return len(x), len(mu), x.shape[1]


def _mask(mask: Tensor | None, mu: Tensor) -> tuple[Tensor | None, int]:
    return (None, 0) if mask is None else (mask.view(torch.uint8), len(mu) if len(mask) > 1 else 0)


def _gradients(x: Tensor, mu: Tensor, need: int) -> list[Tensor | None]:
    made = torch.full_like(x, math.nan), torch.full_like(mu, math.nan), _empty(len(mu))
    return [t if need >> i & 1 else None for i, t in enumerate(made)]


def _given(found: list[Tensor | None], x: Tensor, mu: Tensor) -> tuple[Tensor, ...]:
    empty = (x.new_empty(0), mu.new_empty(0), mu.new_empty(0))
    return tuple(e if t is None else t for t, e in zip(found, empty, strict=False))
