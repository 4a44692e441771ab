"""Sums of rows for every class, hard or soft, without float atomics.

A block of classes times a block of features is a product: the rows' shares in the classes
(transposed) times the rows. Fixed splits of the rows add up in order at the end. With many classes
rows are sorted by label first, so that a block of classes walks along its own rows alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import PRECISION, dot_, is_finite, launch, padded
from fedkernels._triton.points import load_rows
from fedkernels.prototype.triton.configurations import (
    CHUNK,
    CLASSES,
    PARTIAL_CELLS,
    PROGRAMS,
    SORTED_FROM,
    SPLIT_ROWS,
)
from fedkernels.prototype.triton.gradient import add_partials

NONE_BAD = tl.constexpr(2**62)


@triton.jit
def find_bad(
    LABELS, WEIGHT, FIRST, n, K, blocks, HARD: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """FIRST (2, blocks): the first row with a label out of range, with a weight below 0 or NaN."""
    block = tl.program_id(0)
    i = block.to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    in_i = i < n
    out = i < 0
    if HARD:
        label = tl.load(LABELS + i, mask=in_i, other=0)
        out = in_i & ((label < 0) | (label >= K))
    wrong = i < 0
    if HAS_WEIGHT:
        wrong = in_i & ~(tl.load(WEIGHT + i, mask=in_i, other=0.0) >= 0.0)
    tl.store(FIRST + block, tl.min(tl.where(out, i, NONE_BAD), 0))
    tl.store(FIRST + blocks + block, tl.min(tl.where(wrong, i, NONE_BAD), 0))


@triton.jit
def settle_bad(FIRST, BAD, blocks, CHUNK: tl.constexpr):
    """BAD (2,): the least of each, -1 if there is none."""
    kind = tl.program_id(0)
    least = tl.full((CHUNK,), NONE_BAD, tl.int64)
    for start in range(0, blocks, CHUNK):
        k = start + tl.arange(0, CHUNK)
        first = tl.load(FIRST + kind * blocks + k, mask=k < blocks, other=NONE_BAD)
        least = tl.minimum(least, first)
    first = tl.min(least, 0)
    tl.store(BAD + kind, tl.where(first == NONE_BAD, -1, first))


@triton.jit
def shares_of(LABELS, WEIGHT, i, j, in_i, in_j, K, HARD: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """(classes, rows): w_i s_ik, and s_ik of rows that take part: those of positive weight."""
    inside = in_j[:, None] & in_i[None, :]
    if HARD:
        label = tl.load(LABELS + i, mask=in_i, other=-1)
        share = tl.where(inside & (label[None, :] == j[:, None]), 1.0, 0.0)
    else:
        at = i.to(tl.int64)[None, :] * K + j[:, None]
        share = tl.load(LABELS + at, mask=inside, other=0.0)
    weighted = share
    if HAS_WEIGHT:
        weight = tl.load(WEIGHT + i, mask=in_i, other=0.0)[None, :]
        share = tl.where(weight > 0.0, share, 0.0)
        weighted = tl.where(share == 0.0, 0.0, share * weight)
    return weighted, share


@triton.jit
def class_sums(
    X, LABELS, WEIGHT, ORDER, BOUNDS, SUM, TOTAL, COUNT, n, K, D, feature_blocks, class_blocks,
    splits, HARD: tl.constexpr, HAS_WEIGHT: tl.constexpr, SORTED: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """SUM (splits, K, D), TOTAL and COUNT (splits, K), double, of BI classes, BK features and a
    split of the rows; ORDER are rows by label, BOUNDS where a block of classes begins in it."""
    program = tl.program_id(0)
    part = program % feature_blocks
    d = part * BK + tl.arange(0, BK)
    program = program // feature_blocks
    block = program % class_blocks
    j = block * BI + tl.arange(0, BI)
    split = program // class_blocks
    in_j = j < K
    begin = (split * 0).to(tl.int64)
    end = begin + n
    if SORTED:
        begin = tl.load(BOUNDS + block)
        end = tl.load(BOUNDS + block + 1)
    length = tl.cdiv(end - begin, splits)
    start = begin + split * length
    stop = tl.minimum(start + length, end)
    sums = tl.zeros((BI, BK), tl.float64)
    total = tl.zeros((BI,), tl.float64)
    count = tl.zeros((BI,), tl.float64)
    for first in range(start, stop, BJ):
        i = first + tl.arange(0, BJ)
        in_i = i < stop
        if SORTED:
            i = tl.load(ORDER + i, mask=in_i, other=0)
        weighted, share = shares_of(LABELS, WEIGHT, i, j, in_i, in_j, K, HARD, HAS_WEIGHT)
        x = load_rows(X, i, in_i, d, D)
        finite = is_finite(x)
        added = tl.zeros((BI, BK), tl.float32)
        added = dot_(weighted, tl.where(finite, x, 0.0), added, PRECISION)
        if tl.max(tl.max(tl.where(finite, 0, 1), 1), 0) > 0:
            # A product would carry what is not finite into every class of the block.
            for row in range(BJ):
                here = tl.arange(0, BJ) == row
                own = tl.sum(tl.where(here[None, :], weighted, 0.0), 1)
                value = tl.sum(tl.where(here[:, None], x, 0.0), 0)
                lost = ~is_finite(value)[None, :] & (own != 0.0)[:, None]
                added += tl.where(lost, own[:, None] * value[None, :], 0.0)
        sums += added.to(tl.float64)  # the specification rounds once
        total += tl.sum(weighted.to(tl.float64), 1)
        count += tl.sum(share.to(tl.float64), 1)
    at = split.to(tl.int64) * K + j
    inside = in_j[:, None] & (d < D)[None, :]
    tl.store(SUM + at[:, None] * D + d[None, :], sums, mask=inside)
    if part == 0:
        tl.store(TOTAL + at, total, mask=in_j)
        tl.store(COUNT + at, count, mask=in_j)


def class_sum(
    x: Tensor, labels: Tensor, weight: Tensor | None, n_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum (K, D), total (K,), count (K,): int64 for hard labels; bad (2,) int64."""
    (n, D), K = x.shape, n_classes
    hard = labels.dim() == 1
    single, double = torch.float32, torch.float64
    BK = padded(D, CLASSES.BK)
    features, classes = max(-(-D // BK), 1), -(-K // CLASSES.BI)
    sort = hard and K >= SORTED_FROM
    rows = -(-n // classes) if sort else n  # that a block of classes walks along, if all are alike
    splits = max(PROGRAMS // (features * classes), rows // SPLIT_ROWS)
    splits = max(min(splits, PARTIAL_CELLS // max(K * D, 1), -(-rows // CLASSES.BJ)), 1)
    order, bounds = None, None
    if sort:
        found = labels.sort(stable=True)
        order = found.indices
        edges = torch.arange(classes + 1, device=x.device).mul_(CLASSES.BI).clamp_(max=K)
        bounds = torch.searchsorted(found.values, edges)
    part = x.new_empty(splits, K, D, dtype=double)
    parts = [x.new_empty(splits, K, dtype=double) for _ in range(2)]
    launch(
        class_sums, features * classes * splits, x, x, labels, weight, order, bounds, part, *parts,
        n, K, D, features, classes, splits, HARD=hard, HAS_WEIGHT=weight is not None, SORTED=sort,
        BI=CLASSES.BI, BJ=CLASSES.BJ, BK=BK, PRECISION=PRECISION, num_warps=CLASSES.warps,
        num_stages=CLASSES.stages,
    )  # fmt: skip
    out = x.new_empty(K, D, dtype=single)
    total = x.new_empty(K, dtype=single)
    count = x.new_empty(K, dtype=torch.int64 if hard else single)
    for source, result in zip((part, *parts), (out, total, count), strict=True):
        add_partials(source, result)
    blocks = -(-n // CHUNK)
    first = x.new_empty(2, blocks, dtype=torch.int64)
    bad = x.new_empty(2, dtype=torch.int64)
    warps = {"num_warps": 4, "num_stages": 1}
    launch(
        find_bad, blocks, x, labels, weight, first, n, K, blocks, HARD=hard,
        HAS_WEIGHT=weight is not None, CHUNK=CHUNK, **warps,
    )  # fmt: skip
    launch(settle_bad, 2, x, first, bad, blocks, CHUNK=CHUNK, **warps)
    return out, total, count, bad
