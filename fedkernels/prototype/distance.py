"""Distances of points to prototypes, faithful to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels.prototype import check, ops, reference
from fedkernels.prototype.autograd import attach, finish, needs

__all__ = ["prototype_distance"]

CANDIDATES = candidates("prototype_distance")
_DOT = check.METRICS.index("dot")


def prototype_distance(
    x: Tensor, prototypes: Tensor, *, metric: str = "sqeuclidean", backend: str = "auto"
) -> Tensor:
    """All distances of N points to K prototypes.

    metric: "sqeuclidean" |x_i - mu_j|^2, "euclidean" its root, "cosine" 1 - cos(x_i, mu_j), "dot"
    -x_i . mu_j (the smallest is the nearest in each).

    Shapes: x (N, D), prototypes (K, D), K at least 1; the result (N, K).
    Dtypes: x float32, bfloat16, float16 or float64 (float64 on cpu and reference), read as it is;
    prototypes float32 or narrower (or float64 with x). Results are float32, float64 for float64;
    gradients come back in each input's dtype.
    Precision: float32 products are full float32. Squares are formed from points less the mean of
    the prototypes, and where that cancels from direct differences: two clusters at +-1e4 with
    spread 1 are told apart, equal points have exactly 0, and finite input never gives NaN while
    squared lengths are in range. The gradient of "euclidean" at 0 is 0. A vector whose squared
    length is below the smallest normal number is a zero vector: cosine distance 1, gradient 0.
    A NaN row of x is NaN and no other row changes a bit. Rows do not depend on the batch, nor any
    bit on the number of threads. Second derivatives raise, but on the reference.

    Raises ValueError (shapes, names), TypeError (dtypes), BackendUnavailable.
    Source: Snell et al. (arXiv 1703.05175) for distances to prototypes as logits.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> prototype_distance(x, x[:1], metric="euclidean").tolist()
    [[0.0], [5.0]]
    """
    x, mu, number = check.points(x, prototypes, metric)
    name = resolve("prototype_distance", backend, CANDIDATES, x)
    if name == "reference":
        with without_autocast(x):
            return reference.prototype_distance(x, mu, number)
    settings = ops.primitives(name), number
    return attach("prototype_distance", _run, _FORMS, needs(x, mu), x, mu, settings)


def _run(x: Tensor, mu: Tensor, settings: tuple[Any, int]) -> Tensor:
    op, metric = settings
    return op.prototype_distance(x, mu, metric)


def _save(ctx: Any, x: Tensor, mu: Tensor, settings: tuple[Any, int], found: Tensor) -> None:
    # Dots do not read what the forward returned: it may be freed, or changed in place.
    kept = None if settings[1] == _DOT else found
    ctx.save_for_backward(x, mu, kept)
    ctx.settings = settings


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mu, found = ctx.saved_tensors
    op, metric = ctx.settings
    wanted = ctx.needs_input_grad[:2]

    def gradients() -> tuple[Tensor | None, ...]:
        g = grad.contiguous()
        need = wanted[0] | wanted[1] << 1
        distance = g if found is None else found
        dx, dmu = op.prototype_distance_backward(x, mu, distance, g, metric, need)
        return dx if wanted[0] else None, dmu if wanted[1] else None

    return (*finish(gradients, x, grad, x, mu), None)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, mu, settings):
        found = _run(x, mu, settings)
        _save(ctx, x, mu, settings, found)
        return found

    backward: Any = staticmethod(_backward)


class _DistanceFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mu, settings):
        return _run(x, mu, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        x, mu, settings = inputs
        _save(ctx, x, mu, settings, output)

    backward: Any = staticmethod(_backward)


_FORMS = (_Distance, _DistanceFunctional)
