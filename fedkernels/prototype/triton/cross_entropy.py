"""Cross-entropy over prototypes: the loss, and the gradients from the same products.

A row's loss is sum_j w_j t_ij (lse_i - logit_ij), summed as differences from the largest logit of
the row's first block: what all logits of a row share never enters a sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch
from fedkernels.prototype.triton.configurations import CHUNK, SOFTMAX
from fedkernels.prototype.triton.gradient import NEED_PRIOR, Gradient, stripe_rows, stripes
from fedkernels.prototype.triton.logits import (
    from_log2,
    log_sum,
    logits_of,
    run_on,
    scale_of,
    share_of,
)
from fedkernels.prototype.triton.prepare import prepare
from fedkernels.prototype.triton.shapes import bytes_of, options_of, row_stride
from fedkernels.prototype.triton.sums import ColumnSums
from fedkernels.prototype.triton.targets import BAD, TAKES_PART, Targets, weight_tile
from fedkernels.prototype.triton.tiles import COSINE, DOT, distances, sizes_of
from fedkernels.prototype.triton.weights import factor_of, store_weights

NONE, SUM, MEAN = range(3)


@triton.jit
def cross_entropy_rows(
    X, MU, NEAR, CENTRE, SIZE, PRIOR, MASK, TARGET, CLASS_WEIGHT, ROW_WEIGHT, VALUE, PART_OF,
    TOTAL, LOSS, BLOCK_LOSS, PAIRS, ALONG, OWN, PART, n, K, D, mask_stride, scale,
    scale_low, inverse, factor,
    HARD: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_ROW_WEIGHT: tl.constexpr, IS_MEAN: tl.constexpr,
    EACH: tl.constexpr, NEED: tl.constexpr, NEED_PART: tl.constexpr, METRIC: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """LOSS of rows (EACH) or BLOCK_LOSS, their sum; with NEED the weights of `gradient.py` in PAIRS
    and the block's share of dlog_prior."""
    block = tl.program_id(0)
    i = block * BI + tl.arange(0, BI)
    in_i = i < n
    part_of = tl.load(PART_OF + i, mask=in_i, other=0)
    takes = part_of == TAKES_PART
    value = tl.load(VALUE + i, mask=in_i, other=0.0)
    own = tl.zeros((BI,), tl.float32)
    if METRIC != DOT:
        own = sizes_of(X, CENTRE, i, in_i, D, METRIC, BI, BK)
    nothing = tl.zeros((BI,), tl.float32)
    largest = tl.full((BI,), float("-inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    base = tl.zeros((BI,), tl.float32)
    apart = tl.zeros((BI,), tl.float32)
    for first in range(0, K, BJ):
        distance = distances(
            X, MU, NEAR, CENTRE, SIZE, own, i, first, in_i, K, D, METRIC, BI, BJ, BK, PRECISION
        )
        j = first + tl.arange(0, BJ)
        in_j = j < K
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        if NEED:
            tl.store(PAIRS + at, distance, mask=in_i[:, None] & in_j[None, :])
        logit = logits_of(
            distance, PRIOR, MASK, nothing, nothing, i, j, in_i, in_j, mask_stride, scale,
            scale_low, HAS_PRIOR, HAS_MASK,
        )  # fmt: skip
        largest, total = run_on(largest, total, logit)
        if first == 0:
            base = tl.where(largest == float("-inf"), 0.0, largest)
        weight = weight_tile(TARGET, CLASS_WEIGHT, i, j, in_i, in_j, K, HARD, HAS_WEIGHT)
        gap = tl.where(weight == 0.0, 0.0, weight * (base[:, None] - logit))
        apart += tl.sum(gap, 1)
    high, low = log_sum(largest, total)
    loss = from_log2(value * ((high - base) + low) + apart)
    loss = tl.where(takes, loss, tl.where(part_of == BAD, float("nan"), 0.0))
    if EACH:
        tl.store(LOSS + i, loss, mask=in_i)
    else:
        tl.store(BLOCK_LOSS + block, tl.sum(loss.to(tl.float64), 0))
    if NEED:
        if METRIC == COSINE:
            tl.store(OWN + i, own, mask=in_i)
        step = tl.where(takes, 1.0, 0.0)
        if IS_MEAN:
            step = step * (1.0 / tl.load(TOTAL)).to(tl.float32)
        if HAS_ROW_WEIGHT:
            step = step * tl.load(ROW_WEIGHT + i, mask=in_i, other=0.0)
        loud = takes & (step != 0.0)
        # What one thread has written the others read.
        tl.debug_barrier()
        along = tl.zeros((BI,), tl.float32)
        for first in range(0, K, BJ):
            j = first + tl.arange(0, BJ)
            in_j = j < K
            inside = in_i[:, None] & in_j[None, :]
            at = i.to(tl.int64)[:, None] * K + j[None, :]
            distance = tl.load(PAIRS + at, mask=inside, other=0.0)
            logit = logits_of(
                distance, PRIOR, MASK, nothing, nothing, i, j, in_i, in_j, mask_stride, scale,
                scale_low, HAS_PRIOR, HAS_MASK,
            )  # fmt: skip
            weight = weight_tile(TARGET, CLASS_WEIGHT, i, j, in_i, in_j, K, HARD, HAS_WEIGHT)
            share = share_of((logit - high[:, None]) - low[:, None], high)
            slope = step[:, None] * (value[:, None] * share - weight)
            use = loud[:, None] & inside & (logit != float("-inf"))
            slope = tl.where(use, slope, 0.0)
            if NEED_PART:
                tl.store(PART + block.to(tl.int64) * K + j, tl.sum(slope, 0), mask=in_j)
            along += store_weights(PAIRS, at, inside, slope * inverse, distance, factor, METRIC)
        tl.store(ALONG + i, along, mask=in_i)


@triton.jit
def settle_loss(BLOCK_LOSS, TOTAL, LOSS, count, IS_MEAN: tl.constexpr, CHUNK: tl.constexpr):
    """The blocks' losses added in order, in double; over the sum of v for the mean."""
    total = tl.zeros((CHUNK,), tl.float64)
    for start in range(0, count, CHUNK):
        k = start + tl.arange(0, CHUNK)
        total += tl.load(BLOCK_LOSS + k, mask=k < count, other=0.0)
    loss = tl.sum(total, 0)
    if IS_MEAN:
        loss = loss / tl.load(TOTAL)
    tl.store(LOSS, loss.to(tl.float32))


def prototype_cross_entropy(
    x: Tensor,
    mu: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    class_weight: Tensor | None,
    row_weight: Tensor | None,
    metric: int,
    temperature: float,
    ignore_index: int,
    reduction: int,
    need: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss (N,) or (), dx (N, D) in x's dtype, dmu (K, D), dlog_prior (K,), bad ()."""
    n, (K, D) = len(x), mu.shape
    BI = SOFTMAX.BI
    prototypes = prepare(x, mu, metric)
    targets = Targets.of(mu, target, log_prior, mask, class_weight, ignore_index)
    each, wanted = reduction == NONE, bool(need & NEED_PRIOR)
    loss = mu.new_empty((n,) if each else ())
    block_loss = mu.new_empty(-(-n // BI), dtype=torch.float64)
    gradient = Gradient.of(x, prototypes, metric, need) if need else None
    prior = ColumnSums.of(mu, BI, stripe_rows(n, K)) if wanted else None
    scratch = (mu,) * 3 if gradient is None else gradient.scratch
    for first, last in stripes(n, K) if need else [(0, n)]:
        blocks = -(-(last - first) // BI)
        launch(
            cross_entropy_rows, blocks, x, x[first:last], *prototypes.tensors, log_prior,
            bytes_of(mask, first, last), target[first:last], class_weight,
            None if row_weight is None else row_weight[first:last], targets.value[first:last],
            targets.part_of[first:last], targets.total, loss[first:last] if each else loss,
            block_loss[first // BI :], *scratch, mu if prior is None else prior.part,
            last - first, K, D, row_stride(mask), *scale_of(temperature), -1.0 / temperature,
            factor_of(metric), HARD=target.dim() == 1, HAS_PRIOR=log_prior is not None,
            HAS_MASK=mask is not None, HAS_WEIGHT=class_weight is not None,
            HAS_ROW_WEIGHT=row_weight is not None, IS_MEAN=reduction == MEAN, EACH=each,
            NEED=bool(need), NEED_PART=wanted, **options_of(SOFTMAX, metric, D),
        )  # fmt: skip
        if gradient is not None:
            gradient.add(first, last)
        if prior is not None:
            prior.add(blocks)
    if not each:
        launch(
            settle_loss, 1, loss, block_loss, targets.total, loss, len(block_loss),
            IS_MEAN=reduction == MEAN, CHUNK=CHUNK, num_warps=4, num_stages=1,
        )  # fmt: skip
    dx, dmu = (x.new_empty(0), mu.new_empty(0)) if gradient is None else gradient.finish()
    return loss, dx, dmu, mu.new_empty(0) if prior is None else prior.total, targets.bad
