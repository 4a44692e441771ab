"""Sums over rows for every prototype, from the shares of blocks of rows, in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch
from fedkernels.prototype.triton.configurations import COLUMN_SUMS


@triton.jit
def add_columns(PART, SUM, TOTAL, count, K, BI: tl.constexpr, BJ: tl.constexpr):
    """Adds `count` rows of PART (blocks, K) to SUM (K,), double; TOTAL is SUM rounded."""
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    total = tl.zeros((BI, BJ), tl.float64)
    for first in range(0, count, BI):
        i = first + tl.arange(0, BI)
        at = i.to(tl.int64)[:, None] * K + j[None, :]
        part = tl.load(PART + at, mask=(i < count)[:, None] & (j < K)[None, :], other=0.0)
        total += part.to(tl.float64)
    sum_ = tl.load(SUM + j, mask=j < K, other=0.0) + tl.sum(total, 0)
    tl.store(SUM + j, sum_, mask=j < K)
    tl.store(TOTAL + j, sum_.to(tl.float32), mask=j < K)


@dataclass(frozen=True)
class ColumnSums:
    """`part` (blocks, K) takes the shares of a stripe of rows; `total` (K,) holds all so far."""

    part: Tensor
    double: Tensor
    total: Tensor

    @classmethod
    def of(cls, mu: Tensor, block: int, rows: int) -> ColumnSums:
        """For stripes of `rows` rows in blocks of `block`."""
        K = len(mu)
        return cls(
            mu.new_empty(-(-rows // block), K), mu.new_zeros(K, dtype=torch.float64),
            mu.new_zeros(K),
        )  # fmt: skip

    def add(self, blocks: int) -> None:
        K, own = len(self.total), COLUMN_SUMS
        launch(
            add_columns, -(-K // own.BJ), self.total, self.part, self.double, self.total, blocks,
            K, BI=own.BI, BJ=own.BJ, num_warps=own.warps, num_stages=own.stages,
        )  # fmt: skip
