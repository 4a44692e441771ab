"""Logits of a block, in units of log 2, and their running log-sum-exp."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from fedkernels._triton import is_finite, log2_, split_double

LOG2E_HIGH = tl.constexpr(1.44269502162933349609375)
LOG2E_LOW = tl.constexpr(1.925963033500579e-08)
LN2_HIGH = tl.constexpr(0.693147182464599609375)
LN2_LOW = tl.constexpr(-1.904654323148236e-09)


def scale_of(temperature: float) -> tuple[float, float]:
    """What a distance is multiplied with to be a logit in units of log 2, in two parts."""
    return split_double(-math.log2(math.e) / temperature)


@triton.jit
def to_log2(x):
    """x / ln 2 in two parts; x is finite or NaN."""
    high = x * LOG2E_HIGH
    return high, tl.fma(x, LOG2E_HIGH, -high) + x * LOG2E_LOW


@triton.jit
def from_log2(x):
    """x ln 2 with one rounding."""
    low = tl.where(is_finite(x), x * LN2_LOW, 0.0)
    return tl.fma(x, LN2_HIGH, low)


@triton.jit
def logits_of(
    distance, PRIOR, MASK, high, low, i, j, in_i, in_j, mask_stride, scale, scale_low,
    HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """(-distance / temperature + log_prior) / ln 2 - high - low, rounded about once, at the size of
    the result; -inf where a pair has no part, also for a NaN."""
    use = in_i[:, None] & in_j[None, :]
    base = -high[:, None]
    tail = -low[:, None]
    if HAS_PRIOR:
        prior = tl.load(PRIOR + j, mask=in_j, other=float("-inf"))
        use = use & (prior != float("-inf"))[None, :]
        prior, prior_low = to_log2(tl.where(prior == float("-inf"), 0.0, prior))
        # The rounding of prior - high, exactly.
        base = prior[None, :] - high[:, None]
        back = base - prior[None, :]
        error = (prior[None, :] - (base - back)) - (high[:, None] + back)
        tail = (prior_low[None, :] - low[:, None]) + error
    tail = tl.where(is_finite(distance), tl.fma(distance, scale_low, tail), 0.0)
    logit = tl.fma(distance, scale, base) + tail
    if HAS_MASK:
        at = i.to(tl.int64)[:, None] * mask_stride + j[None, :]
        use = use & (tl.load(MASK + at, mask=use, other=0) != 0)
    return tl.where(use, logit, float("-inf"))


@triton.jit
def run_on(largest, total, logit):
    """The running maximum and sum of exp2 of rows, after one more block."""
    above = tl.maximum(largest, tl.max(logit, 1))
    base = tl.where(above == float("-inf"), 0.0, above)
    total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(logit - base[:, None]), 1)
    return above, total


@triton.jit
def log_sum(largest, total):
    """log2 of the sum in two parts; -inf for a row that has no part, NaN for one of NaN, which has
    no maximum but a sum."""
    empty = total == 0.0
    high = tl.where(empty, float("-inf"), tl.where(largest == float("-inf"), total, largest))
    return high, log2_(tl.where(empty, 1.0, total))


@triton.jit
def share_of(logit, high):
    """exp2(logit), for a logit less its row's log-sum: 0 where the pair, or the row, has no part.
    `high` is -inf for such a row."""
    none = (high == float("-inf"))[:, None] | ((logit == float("-inf")) & (high == high)[:, None])
    return tl.where(none, 0.0, tl.exp2(logit - tl.where(high == high, 0.0, high)[:, None]))
