"""Softmax over prototypes: one product, then the pairs of a stripe once more, on the way back too.

A program takes a block of rows along all prototypes, leaves the distances behind (in `prob`, or in
a stripe's scratch), and comes back for probabilities or weights when the row's sums are known.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch
from fedkernels.prototype.triton.configurations import SOFTMAX
from fedkernels.prototype.triton.gradient import NEED_PRIOR, Gradient, stripe_rows, stripes
from fedkernels.prototype.triton.logits import (
    from_log2,
    log_sum,
    logits_of,
    run_on,
    scale_of,
    share_of,
    to_log2,
)
from fedkernels.prototype.triton.prepare import prepare
from fedkernels.prototype.triton.shapes import bytes_of, options_of, row_stride
from fedkernels.prototype.triton.sums import ColumnSums
from fedkernels.prototype.triton.tiles import COSINE, DOT, distances, sizes_of
from fedkernels.prototype.triton.weights import factor_of, store_weights


@triton.jit
def softmax_rows(
    X, MU, NEAR, CENTRE, SIZE, PRIOR, MASK, PAIRS, LSE, PART, n, K, D, mask_stride, scale,
    scale_low, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, WANT_PROB: tl.constexpr,
    METRIC: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """LSE, the block's share of the mass, and with WANT_PROB the probabilities in PAIRS."""
    block = tl.program_id(0)
    i = block * BI + tl.arange(0, BI)
    in_i = i < n
    own = tl.zeros((BI,), tl.float32)
    if METRIC != DOT:
        own = sizes_of(X, CENTRE, i, in_i, D, METRIC, BI, BK)
    nothing = tl.zeros((BI,), tl.float32)
    largest = tl.full((BI,), float("-inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    for first in range(0, K, BJ):
        distance = distances(
            X, MU, NEAR, CENTRE, SIZE, own, i, first, in_i, K, D, METRIC, BI, BJ, BK, PRECISION
        )
        j = first + tl.arange(0, BJ)
        in_j = j < K
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        tl.store(PAIRS + at, distance, mask=in_i[:, None] & in_j[None, :])
        logit = logits_of(
            distance, PRIOR, MASK, nothing, nothing, i, j, in_i, in_j, mask_stride, scale,
            scale_low, HAS_PRIOR, HAS_MASK,
        )  # fmt: skip
        largest, total = run_on(largest, total, logit)
    high, low = log_sum(largest, total)
    tl.store(LSE + i, from_log2(high + low), mask=in_i)
    # What one thread has written the others read.
    tl.debug_barrier()
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
        # The logits that were summed, to the bit: what they are rounded by cancels.
        share = share_of((logit - high[:, None]) - low[:, None], high)
        share = tl.where(in_i[:, None], share, 0.0)
        if WANT_PROB:
            tl.store(PAIRS + at, share, mask=inside)
        tl.store(PART + block.to(tl.int64) * K + j, tl.sum(share, 0), mask=in_j)


@triton.jit
def upstream_of(
    G_PROB, G_MASS, i, j, in_i, in_j, K, HAS_PROB: tl.constexpr, HAS_MASS: tl.constexpr
):
    """g_prob_ij + g_mass_j"""
    inside = in_i[:, None] & in_j[None, :]
    upstream = tl.where(inside, 0.0, 0.0)
    if HAS_PROB:
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        upstream = tl.load(G_PROB + at, mask=inside, other=0.0)
    if HAS_MASS:
        upstream += tl.load(G_MASS + j, mask=in_j, other=0.0)[None, :]
    return upstream


@triton.jit
def times(share, upstream):
    """A pair without a share has none of the upstream either, whatever that is."""
    return tl.where(share == 0.0, 0.0, share * upstream)


@triton.jit
def softmax_weights(
    X, MU, NEAR, CENTRE, SIZE, PRIOR, MASK, LSE, G_PROB, G_LSE, G_MASS, PAIRS, ALONG, OWN, PART, n,
    K, D, mask_stride, scale, scale_low, inverse, factor, HAS_PRIOR: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_PROB: tl.constexpr, HAS_LSE: tl.constexpr, HAS_MASS: tl.constexpr,
    NEED_PART: tl.constexpr, METRIC: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weights of `gradient.py` in PAIRS, and the block's share of dlog_prior."""
    block = tl.program_id(0)
    i = block * BI + tl.arange(0, BI)
    in_i = i < n
    own = tl.zeros((BI,), tl.float32)
    if METRIC != DOT:
        own = sizes_of(X, CENTRE, i, in_i, D, METRIC, BI, BK)
    if METRIC == COSINE:
        tl.store(OWN + i, own, mask=in_i)
    lse = tl.load(LSE + i, mask=in_i, other=float("-inf"))
    empty = lse == float("-inf")
    high, low = to_log2(tl.where(empty, 0.0, lse))
    row = tl.where(empty, float("-inf"), high)
    g_lse = tl.zeros((BI,), tl.float32)
    if HAS_LSE:
        g_lse = tl.load(G_LSE + i, mask=in_i, other=0.0)
    loud = tl.where(g_lse == 0.0, 0, 1)
    mean = tl.zeros((BI,), tl.float32)
    for first in range(0, K, BJ):
        distance = distances(
            X, MU, NEAR, CENTRE, SIZE, own, i, first, in_i, K, D, METRIC, BI, BJ, BK, PRECISION
        )
        j = first + tl.arange(0, BJ)
        in_j = j < K
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        tl.store(PAIRS + at, distance, mask=in_i[:, None] & in_j[None, :])
        if HAS_PROB or HAS_MASS:
            logit = logits_of(
                distance, PRIOR, MASK, high, low, i, j, in_i, in_j, mask_stride, scale, scale_low,
                HAS_PRIOR, HAS_MASK,
            )  # fmt: skip
            upstream = upstream_of(G_PROB, G_MASS, i, j, in_i, in_j, K, HAS_PROB, HAS_MASS)
            mean += tl.sum(times(share_of(logit, row), upstream), 1)
            loud += tl.sum(tl.where(upstream == 0.0, 0, 1), 1)
    tl.debug_barrier()
    along = tl.zeros((BI,), tl.float32)
    for first in range(0, K, BJ):
        j = first + tl.arange(0, BJ)
        in_j = j < K
        inside = in_i[:, None] & in_j[None, :]
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        distance = tl.load(PAIRS + at, mask=inside, other=0.0)
        logit = logits_of(
            distance, PRIOR, MASK, high, low, i, j, in_i, in_j, mask_stride, scale, scale_low,
            HAS_PRIOR, HAS_MASK,
        )  # fmt: skip
        upstream = upstream_of(G_PROB, G_MASS, i, j, in_i, in_j, K, HAS_PROB, HAS_MASS)
        share = share_of(logit, row)
        slope = times(share, upstream) + share * (g_lse - mean)[:, None]
        slope = tl.where((loud > 0)[:, None] & inside, slope, 0.0)
        if NEED_PART:
            tl.store(PART + block.to(tl.int64) * K + j, tl.sum(slope, 0), mask=in_j)
        # dL/d distance = -slope / temperature
        along += store_weights(PAIRS, at, inside, slope * inverse, distance, factor, METRIC)
    tl.store(ALONG + i, along, mask=in_i)


def prototype_softmax(
    x: Tensor,
    mu: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    metric: int,
    temperature: float,
    want_prob: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """prob (N, K) or (0,), lse (N,), mass (K,)."""
    n, (K, D) = len(x), mu.shape
    prototypes = prepare(x, mu, metric)
    prob, lse = mu.new_empty((n, K) if want_prob else (0,)), mu.new_empty(n)
    scratch = prob if want_prob else mu.new_empty(stripe_rows(n, K), K)
    mass = ColumnSums.of(mu, SOFTMAX.BI, stripe_rows(n, K))
    for first, last in stripes(n, K):
        blocks = -(-(last - first) // SOFTMAX.BI)
        launch(
            softmax_rows, blocks, x, x[first:last], *prototypes.tensors, log_prior,
            bytes_of(mask, first, last), scratch[first:last] if want_prob else scratch,
            lse[first:last], mass.part, last - first, K, D, row_stride(mask),
            *scale_of(temperature), HAS_PRIOR=log_prior is not None, HAS_MASK=mask is not None,
            WANT_PROB=want_prob, **options_of(SOFTMAX, metric, D),
        )  # fmt: skip
        mass.add(blocks)
    return prob, lse, mass.total


def prototype_softmax_backward(
    x: Tensor,
    mu: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    lse: Tensor,
    g_prob: Tensor | None,
    g_lse: Tensor | None,
    g_mass: Tensor | None,
    metric: int,
    temperature: float,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (N, D) in x's dtype, dmu (K, D), dlog_prior (K,)."""
    n, (K, D) = len(x), mu.shape
    prototypes = prepare(x, mu, metric)
    gradient = Gradient.of(x, prototypes, metric, need)
    wanted = bool(need & NEED_PRIOR)
    prior = ColumnSums.of(mu, SOFTMAX.BI, stripe_rows(n, K)) if wanted else None
    for first, last in stripes(n, K):
        blocks = -(-(last - first) // SOFTMAX.BI)
        part = mu if prior is None else prior.part
        launch(
            softmax_weights, blocks, x, x[first:last], *prototypes.tensors, log_prior,
            bytes_of(mask, first, last), lse[first:last],
            None if g_prob is None else g_prob[first:last],
            None if g_lse is None else g_lse[first:last], g_mass, *gradient.scratch, part,
            last - first, K, D, row_stride(mask), *scale_of(temperature), -1.0 / temperature,
            factor_of(metric),
            HAS_PRIOR=log_prior is not None, HAS_MASK=mask is not None,
            HAS_PROB=g_prob is not None, HAS_LSE=g_lse is not None, HAS_MASS=g_mass is not None,
            NEED_PART=wanted, **options_of(SOFTMAX, metric, D),
        )  # fmt: skip
        gradient.add(first, last)
        if prior is not None:
            prior.add(blocks)
    return *gradient.finish(), mu.new_empty(0) if prior is None else prior.total
