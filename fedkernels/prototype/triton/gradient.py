"""Gradients to rows and prototypes, from the weights of their pairs (`weights.py`).

Rows come in stripes whose weights fit WEIGHT_CELLS: the only array over pairs, whatever N is. A
stripe's weights give its dx at once, and are added to the partial dmu of fixed splits of the
stripe; the splits are added in order at the end. Everything in a fixed order, without atomics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import PRECISION, dot_, is_finite, launch, narrow, padded
from fedkernels._triton.points import load_rows
from fedkernels.prototype.triton.configurations import (
    COLUMNS,
    COMBINE,
    PARTIAL_CELLS,
    PROGRAMS,
    ROWS,
    SPLIT_ROWS,
    WEIGHT_CELLS,
)
from fedkernels.prototype.triton.prepare import Prototypes
from fedkernels.prototype.triton.tiles import COSINE, DOT, unit

NEED_X, NEED_MU, NEED_PRIOR = (1 << bit for bit in range(3))


@triton.jit
def centred(X, CENTRE, own, i, in_i, d, D, METRIC: tl.constexpr):
    """A tile of rows as the metric reads them; 0 for what is not finite."""
    x = load_rows(X, i, in_i, d, D)
    if METRIC == COSINE:
        x = unit(x, own)
    elif METRIC != DOT:
        x = x - tl.load(CENTRE + d, mask=d < D, other=0.0)[None, :]
    return tl.where(is_finite(x), x, 0.0)


@triton.jit
def rows_gradient(
    WEIGHT, ALONG, OWN, X, NEAR, CENTRE, DX, n, K, D, feature_blocks, METRIC: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of a block of rows and BK features. ALONG: the weights' sums, under the cosine theirs."""
    program = tl.program_id(0)
    i = (program // feature_blocks) * BI + tl.arange(0, BI)
    d = (program % feature_blocks) * BK + tl.arange(0, BK)
    in_i = i < n
    total = tl.zeros((BI, BK), tl.float32)
    for first in range(0, K, BJ):
        j = first + tl.arange(0, BJ)
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        weight = tl.load(WEIGHT + at, mask=in_i[:, None] & (j < K)[None, :], other=0.0)
        mu = load_rows(NEAR, j, j < K, d, D)
        total = dot_(weight, tl.where(is_finite(mu), mu, 0.0), total, PRECISION)
    gradient = total
    if METRIC != DOT:
        along = tl.load(ALONG + i, mask=in_i, other=0.0)[:, None]
        own = tl.zeros((BI,), tl.float32)
        if METRIC == COSINE:
            own = tl.load(OWN + i, mask=in_i, other=0.0)
        # A row without gradient stays 0 whatever it holds.
        pull = tl.where(along == 0.0, 0.0, along * centred(X, CENTRE, own, i, in_i, d, D, METRIC))
        if METRIC == COSINE:
            zero = own == 0.0
            gradient = tl.div_rn(total - pull, tl.where(zero, 1.0, own)[:, None])
            gradient = tl.where(zero[:, None] | (total == pull), 0.0, gradient)
        else:
            gradient = pull - total
    at = i.to(tl.int64)[:, None] * D + d[None, :]
    inside = in_i[:, None] & (d < D)[None, :]
    tl.store(DX + at, narrow(gradient, DX.dtype.element_ty), mask=inside)


@triton.jit
def columns_gradient(
    WEIGHT, OWN, X, NEAR, CENTRE, PART, n, K, D, feature_blocks, column_blocks, split_rows,
    METRIC: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """PART (splits, K, D), float64: adds the share of a split of rows in dmu, for a block of BI
    prototypes and BK features. Under the cosine it is still to be projected and divided."""
    program = tl.program_id(0)
    d = (program % feature_blocks) * BK + tl.arange(0, BK)
    program = program // feature_blocks
    j = (program % column_blocks) * BI + tl.arange(0, BI)
    split = program // column_blocks
    in_j = j < K
    total = tl.zeros((BI, BK), tl.float32)
    weights = tl.zeros((BI,), tl.float32)
    end = tl.minimum((split + 1) * split_rows, n)
    for first in range(split * split_rows, end, BJ):
        i = first + tl.arange(0, BJ)
        in_i = i < end
        at = i.to(tl.int64)[None, :] * K + j[:, None]
        weight = tl.load(WEIGHT + at, mask=in_i[None, :] & in_j[:, None], other=0.0)
        own = tl.zeros((BJ,), tl.float32)
        if METRIC == COSINE:
            own = tl.load(OWN + i, mask=in_i, other=0.0)
        x = centred(X, CENTRE, own, i, in_i, d, D, METRIC)
        total = dot_(weight, x, total, PRECISION)
        if METRIC < COSINE:
            weights += tl.sum(weight, 1)
    if METRIC < COSINE:
        mu = load_rows(NEAR, j, in_j, d, D)
        total = tl.where(weights[:, None] == 0.0, 0.0, weights[:, None] * mu) - total
    at = (split.to(tl.int64) * K + j)[:, None] * D + d[None, :]
    inside = in_j[:, None] & (d < D)[None, :]
    before = tl.load(PART + at, mask=inside, other=0.0)
    tl.store(PART + at, before + total.to(tl.float64), mask=inside)


@triton.jit
def add_splits(PART, OUT, splits, count, CHUNK: tl.constexpr):
    """OUT (count,), float32 or int64: PART (splits, count) added in order, in double."""
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.float64)
    for split in range(splits):
        total += tl.load(PART + split * (at * 0 + count) + at, mask=at < count, other=0.0)
    tl.store(OUT + at, total.to(OUT.dtype.element_ty), mask=at < count)


@triton.jit
def project(NEAR, SIZE, DMU, K, D, BI: tl.constexpr, BK: tl.constexpr):
    """DMU, in place: its part across the unit prototype, over the prototype's length."""
    j = tl.program_id(0) * BI + tl.arange(0, BI)
    in_j = j < K
    size = tl.load(SIZE + j, mask=in_j, other=0.0)
    along = tl.zeros((BI,), tl.float32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        mu = load_rows(NEAR, j, in_j, d, D)
        total = load_rows(DMU, j, in_j, d, D)
        along += tl.sum(tl.where(total == 0.0, 0.0, total * mu), 1)
    zero = size == 0.0
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        mu = load_rows(NEAR, j, in_j, d, D)
        total = load_rows(DMU, j, in_j, d, D)
        total -= tl.where(along[:, None] == 0.0, 0.0, along[:, None] * mu)
        total = tl.div_rn(total, tl.where(zero, 1.0, size)[:, None])
        at = j.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(
            DMU + at, tl.where(zero[:, None], 0.0, total), mask=in_j[:, None] & (d < D)[None, :]
        )


def stripes(n: int, K: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose pairs fit WEIGHT_CELLS."""
    rows = stripe_rows(n, K)
    for first in range(0, n, max(rows, 1)):
        yield first, min(first + rows, n)


def stripe_rows(n: int, K: int) -> int:
    return max(min(WEIGHT_CELLS // max(K, 1) // ROWS.BI * ROWS.BI, n), min(ROWS.BI, n))


@dataclass(frozen=True)
class Gradient:
    """dx (N, D) and dmu (K, D) while they come together; weight, along and own of one stripe."""

    x: Tensor
    prototypes: Prototypes
    metric: int
    need: int
    dx: Tensor
    part: Tensor
    split_rows: int
    weight: Tensor
    along: Tensor
    own: Tensor

    @classmethod
    def of(cls, x: Tensor, prototypes: Prototypes, metric: int, need: int) -> Gradient:
        n, (K, D) = len(x), prototypes.mu.shape
        new, rows = prototypes.mu.new_empty, stripe_rows(n, K)
        tiles = max(-(-K // COLUMNS.BI) * -(-D // padded(D, COLUMNS.BK)), 1)
        splits = max(PROGRAMS // tiles, rows // SPLIT_ROWS)
        splits = max(min(splits, PARTIAL_CELLS // max(K * D, 1), -(-rows // COLUMNS.BJ)), 1)
        split_rows = max(-(-rows // splits), 1)
        shape = (splits, K, D) if need & NEED_MU else (0,)
        return cls(
            x, prototypes, metric, need, x.new_empty(x.shape if need & NEED_X else (0,)),
            prototypes.mu.new_zeros(shape, dtype=torch.float64), split_rows, new(rows, K),
            new(rows), new(rows),
        )  # fmt: skip

    @property
    def scratch(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the kernels of a stripe's weights write."""
        return self.weight, self.along, self.own

    def add(self, first: int, last: int) -> None:
        """Takes in the stripe of rows whose weights are there."""
        n, (K, D) = last - first, self.prototypes.mu.shape
        x, near, centre = self.x[first:last], self.prototypes.near, self.prototypes.centre
        rest = {"METRIC": self.metric, "PRECISION": PRECISION}
        if self.need & NEED_X:
            BK = padded(D, ROWS.BK)
            blocks = -(-D // BK)
            launch(
                rows_gradient, -(-n // ROWS.BI) * blocks, x, self.weight, self.along, self.own, x,
                near, centre, self.dx[first:last], n, K, D, blocks, BI=ROWS.BI, BJ=ROWS.BJ, BK=BK,
                num_warps=ROWS.warps, num_stages=ROWS.stages, **rest,
            )  # fmt: skip
        if self.need & NEED_MU:
            BK = padded(D, COLUMNS.BK)
            blocks, columns = -(-D // BK), -(-K // COLUMNS.BI)
            launch(
                columns_gradient, blocks * columns * len(self.part), x, self.weight, self.own, x,
                near, centre, self.part, n, K, D, blocks, columns, self.split_rows, BI=COLUMNS.BI,
                BJ=COLUMNS.BJ, BK=BK, num_warps=COLUMNS.warps, num_stages=COLUMNS.stages, **rest,
            )  # fmt: skip

    def finish(self) -> tuple[Tensor, Tensor]:
        """dx in x's dtype and dmu; what is not needed has no elements."""
        mu = self.prototypes.mu
        if not self.need & NEED_MU:
            return self.dx, mu.new_empty(0)
        dmu, (K, D) = mu.new_empty(mu.shape), mu.shape
        add_partials(self.part, dmu)
        if self.metric == COSINE.value:
            launch(
                project, -(-K // COMBINE.BI), mu, self.prototypes.near, self.prototypes.size, dmu,
                K, D, BI=COMBINE.BI, BK=padded(D, COMBINE.BK), num_warps=COMBINE.warps,
                num_stages=COMBINE.stages,
            )  # fmt: skip
        return self.dx, dmu


def add_partials(part: Tensor, out: Tensor) -> None:
    """out = the sum of part (splits, ...) in order."""
    count, CHUNK = out.numel(), COMBINE.BI * COMBINE.BK
    launch(
        add_splits, -(-count // CHUNK), out, part, out, len(part), count, CHUNK=CHUNK,
        num_warps=COMBINE.warps, num_stages=COMBINE.stages,
    )  # fmt: skip
