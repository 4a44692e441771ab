"""All distances, (N, K), and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch, padded
from fedkernels.prototype.triton.configurations import DISTANCE, WEIGHTS
from fedkernels.prototype.triton.gradient import Gradient, stripes
from fedkernels.prototype.triton.prepare import prepare
from fedkernels.prototype.triton.shapes import options_of
from fedkernels.prototype.triton.tiles import COSINE, DOT, distances, sizes_of
from fedkernels.prototype.triton.weights import factor_of, store_weights


@triton.jit
def distance_blocks(
    X, MU, NEAR, CENTRE, SIZE, OUT, n, K, D, column_blocks, METRIC: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i = (program // column_blocks) * BI + tl.arange(0, BI)
    first = (program % column_blocks) * BJ
    in_i = i < n
    own = tl.zeros((BI,), tl.float32)
    if METRIC != DOT:
        own = sizes_of(X, CENTRE, i, in_i, D, METRIC, BI, BK)
    value = distances(
        X, MU, NEAR, CENTRE, SIZE, own, i, first, in_i, K, D, METRIC, BI, BJ, BK, PRECISION
    )
    j = first + tl.arange(0, BJ)
    at = i.to(tl.int64)[:, None] * K + j[None, :]
    tl.store(OUT + at, value, mask=in_i[:, None] & (j < K)[None, :])


@triton.jit
def distance_weights(
    X, DISTANCE, GRAD, WEIGHT, ALONG, OWN, n, K, D, factor, METRIC: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The weights of `gradient.py` for the gradients of a block of rows of distances."""
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_i = i < n
    along = tl.zeros((BI,), tl.float32)
    for first in range(0, K, BJ):
        j = first + tl.arange(0, BJ)
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        inside = in_i[:, None] & (j < K)[None, :]
        grad = tl.load(GRAD + at, mask=inside, other=0.0)
        distance = tl.load(DISTANCE + at, mask=inside, other=0.0)
        along += store_weights(WEIGHT, at, inside, grad, distance, factor, METRIC)
    tl.store(ALONG + i, along, mask=in_i)
    if METRIC == COSINE:
        tl.store(OWN + i, sizes_of(X, X, i, in_i, D, METRIC, BI, BK), mask=in_i)


def prototype_distance(x: Tensor, mu: Tensor, metric: int) -> Tensor:
    """(N, K)"""
    n, (K, D) = len(x), mu.shape
    prototypes = prepare(x, mu, metric)
    out = mu.new_empty(n, K)
    rows, columns = -(-n // DISTANCE.BI), -(-K // DISTANCE.BJ)
    launch(
        distance_blocks, rows * columns, x, x, *prototypes.tensors, out, n, K, D, columns,
        **options_of(DISTANCE, metric, D),
    )  # fmt: skip
    return out


def prototype_distance_backward(
    x: Tensor, mu: Tensor, distance: Tensor, grad: Tensor, metric: int, need: int
) -> tuple[Tensor, Tensor]:
    """dx (N, D) in x's dtype and dmu (K, D), for grad = dL/d distance."""
    K, D = mu.shape
    gradient = Gradient.of(x, prepare(x, mu, metric), metric, need)
    for first, last in stripes(len(x), K):
        n = last - first
        launch(
            distance_weights, -(-n // WEIGHTS.BI), x, x[first:last], distance[first:last],
            grad[first:last], *gradient.scratch, n, K, D,
            factor_of(metric), METRIC=metric, BI=WEIGHTS.BI, BJ=WEIGHTS.BJ,
            BK=padded(D, WEIGHTS.BK), num_warps=WEIGHTS.warps, num_stages=WEIGHTS.stages,
        )  # fmt: skip
        gradient.add(first, last)
    return gradient.finish()
