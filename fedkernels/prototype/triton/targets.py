"""What labels say before a distance is known: rows' weights, their sum, labels out of range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch
from fedkernels.prototype.triton.configurations import CHUNK, TARGETS
from fedkernels.prototype.triton.shapes import bytes_of, row_stride

# What a row of PART_OF says.
SILENT = tl.constexpr(0)  # no loss, no gradient
TAKES_PART = tl.constexpr(1)
BAD = tl.constexpr(2)  # loss NaN, no gradient
NONE_BAD = tl.constexpr(2**62)


@triton.jit
def weight_tile(TARGET, WEIGHT, i, j, in_i, in_j, K, HARD: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """w_j t_ij; a label out of range is nobody's."""
    inside = in_i[:, None] & in_j[None, :]
    if HARD:
        label = tl.load(TARGET + i, mask=in_i, other=-1)
        weight = tl.where(inside & (label[:, None] == j[None, :]), 1.0, 0.0)
    else:
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        weight = tl.load(TARGET + at, mask=inside, other=0.0)
    if HAS_WEIGHT:
        own = tl.load(WEIGHT + j, mask=in_j, other=0.0)[None, :]
        if HARD:
            weight = tl.where(weight == 0.0, 0.0, own)
        else:
            weight = weight * own
    return weight


@triton.jit
def read_targets(
    TARGET, PRIOR, MASK, WEIGHT, VALUE, PART_OF, SUM, FIRST, n, K, mask_stride, ignored,
    HARD: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """VALUE v_i, PART_OF, and of a block of rows SUM of v (double) and FIRST bad row."""
    block = tl.program_id(0)
    i = block * BI + tl.arange(0, BI)
    in_i = i < n
    value = tl.zeros((BI,), tl.float32)
    weighted = tl.zeros((BI,), tl.int32)
    allowed = tl.zeros((BI,), tl.int32)
    for first in range(0, K, BJ):
        j = first + tl.arange(0, BJ)
        in_j = j < K
        weight = weight_tile(TARGET, WEIGHT, i, j, in_i, in_j, K, HARD, HAS_WEIGHT)
        value += tl.sum(weight, 1)
        weighted += tl.sum(tl.where(weight == 0.0, 0, 1), 1)
        use = in_i[:, None] & in_j[None, :]
        if HAS_MASK:
            at = i.to(tl.int64)[:, None] * mask_stride + j[None, :]
            use = use & (tl.load(MASK + at, mask=use, other=0) != 0)
        if HAS_PRIOR:
            prior = tl.load(PRIOR + j, mask=in_j, other=float("-inf"))
            use = use & (prior != float("-inf"))[None, :]
        allowed += tl.sum(use.to(tl.int32), 1)
    active = in_i & (allowed > 0)
    bad = in_i & (i < 0)
    if HARD:
        label = tl.load(TARGET + i, mask=in_i, other=ignored)
        active = active & (label != ignored)
        bad = in_i & (label != ignored) & ((label < 0) | (label >= K))
    value = tl.where(active, value, 0.0)
    takes = active & (weighted > 0)
    part = tl.where(bad, BAD, tl.where(takes, TAKES_PART, SILENT))
    tl.store(VALUE + i, value, mask=in_i)
    tl.store(PART_OF + i, part.to(tl.int32), mask=in_i)
    tl.store(SUM + block, tl.sum(value.to(tl.float64), 0))
    tl.store(FIRST + block, tl.min(tl.where(bad, i.to(tl.int64), NONE_BAD), 0))


@triton.jit
def settle_targets(SUM, FIRST, TOTAL, BAD_ROW, count, CHUNK: tl.constexpr):
    """TOTAL of v and the first bad row, -1 if none."""
    total = tl.zeros((CHUNK,), tl.float64)
    least = tl.full((CHUNK,), NONE_BAD, tl.int64)
    for start in range(0, count, CHUNK):
        k = start + tl.arange(0, CHUNK)
        total += tl.load(SUM + k, mask=k < count, other=0.0)
        least = tl.minimum(least, tl.load(FIRST + k, mask=k < count, other=NONE_BAD))
    first = tl.min(least, 0)
    tl.store(TOTAL, tl.sum(total, 0))
    tl.store(BAD_ROW, tl.where(first == NONE_BAD, -1, first))


@dataclass(frozen=True)
class Targets:
    """v (N,), what each row takes part in (N,), the sum of v () in double, the first bad row ()."""

    target: Tensor
    class_weight: Tensor | None
    value: Tensor
    part_of: Tensor
    total: Tensor
    bad: Tensor

    @classmethod
    def of(
        cls,
        mu: Tensor,
        target: Tensor,
        log_prior: Tensor | None,
        mask: Tensor | None,
        class_weight: Tensor | None,
        ignore_index: int,
    ) -> Targets:
        n, K = len(target), len(mu)
        blocks = -(-n // TARGETS.BI)
        value, part_of = mu.new_empty(n), mu.new_empty(n, dtype=torch.int32)
        sums = mu.new_empty(blocks, dtype=torch.float64)
        firsts = mu.new_empty(blocks, dtype=torch.int64)
        total = mu.new_empty((), dtype=torch.float64)
        bad = mu.new_empty((), dtype=torch.int64)
        warps = {"num_warps": TARGETS.warps, "num_stages": TARGETS.stages}
        launch(
            read_targets, blocks, mu, target, log_prior, bytes_of(mask, 0, n), class_weight, value,
            part_of, sums, firsts, n, K, row_stride(mask), ignore_index, HARD=target.dim() == 1,
            HAS_PRIOR=log_prior is not None, HAS_MASK=mask is not None,
            HAS_WEIGHT=class_weight is not None, BI=TARGETS.BI, BJ=TARGETS.BJ, **warps,
        )  # fmt: skip
        launch(settle_targets, 1, mu, sums, firsts, total, bad, blocks, CHUNK=CHUNK, **warps)
        return cls(target, class_weight, value, part_of, total, bad)
