"""The k nearest prototypes of each row: blocks of distances, and a list that stays on the chip.

The expansion only names candidates: whoever could still enter a row's list, given what the
expansion may err by, is gathered, measured by direct differences and ranked by that. The list is
of pairs (distance, index) and the larger pair leaves, so that the order in which candidates are
measured does not show and ties go to the lowest index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch
from fedkernels._triton.points import load_rows
from fedkernels.prototype.triton.configurations import ASSIGN
from fedkernels.prototype.triton.prepare import prepare
from fedkernels.prototype.triton.shapes import bytes_of, options_of, row_stride
from fedkernels.prototype.triton.tiles import (
    COSINE,
    DOT,
    EUCLIDEAN,
    SHARE,
    direct,
    expanded,
    sizes_of,
    unit,
)

BAND = tl.constexpr(2.0**-20)  # 8 eps of the norms: what the expansion may err by
NOBODY = tl.constexpr(2**31 - 1)


@triton.jit
def could_enter(value, own, other, j, worst, worst_index, METRIC: tl.constexpr):
    """Candidates that may be below a row's worst pair, given what the expansion errs by: nothing
    for a zero vector, whose distances (cosine, dot) are all the same."""
    if METRIC == COSINE:
        band = tl.where((own == 0.0)[:, None] | (other == 0.0)[None, :], 0.0, BAND)
    elif METRIC == DOT:
        band = BAND * own[:, None] * other[None, :]
    else:
        band = BAND * (own[:, None] + other[None, :])
    low = tl.where(band < float("inf"), value - band, value)
    below = (low < worst[:, None]) | ((low == worst[:, None]) & (j[None, :] < worst_index[:, None]))
    return below & (value < float("inf"))


@triton.jit
def measured(
    X, MU, NEAR, own, i, j, use, D, METRIC: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr
):
    """The distance (squared) of one pair for each row, the same for equal prototypes."""
    if METRIC < COSINE:
        return direct(X, MU, NEAR, own, i, j, use, D, METRIC, BI, BK)
    else:
        total = tl.zeros((BI, BK), tl.float32)
        for start in range(0, D, BK):
            d = start + tl.arange(0, BK)
            x = load_rows(X, i, use, d, D)
            if METRIC == COSINE:
                x = unit(x, own)
            total += x * load_rows(NEAR, j, use, d, D)
        value = -tl.sum(total, 1)
        if METRIC == COSINE:
            value += 1.0
            close = use & (value < SHARE)
            if tl.max(close.to(tl.int32), 0) > 0:
                near = direct(X, MU, NEAR, own, i, j, close, D, METRIC, BI, BK)
                value = tl.where(close, near, value)
        return value


@triton.jit
def worst_of(values, indices, valid):
    """The largest pair (value, index) of each row."""
    value = tl.max(tl.where(valid[None, :], values, float("-inf")), 1)
    index = tl.max(tl.where(valid[None, :] & (values == value[:, None]), indices, -1), 1)
    return value, index


@triton.jit
def place_of(values, indices, valid, value, index, SLOTS: tl.constexpr):
    """The first slot of each row that holds the pair, (BI, SLOTS)."""
    slot = tl.arange(0, SLOTS)
    same = valid[None, :] & (values == value[:, None]) & (indices == index[:, None])
    first = tl.min(tl.where(same, slot[None, :], SLOTS), 1)
    return slot[None, :] == first[:, None]


@triton.jit
def assign_rows(
    X, MU, NEAR, CENTRE, SIZE, MASK, VALUE, INDEX, n, K, D, mask_stride, k, HAS_MASK: tl.constexpr,
    SLOTS: tl.constexpr, METRIC: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_i = i < n
    own = sizes_of(X, CENTRE, i, in_i, D, METRIC, BI, BK)
    column = tl.arange(0, BJ)
    valid = tl.arange(0, SLOTS) < k
    values = tl.full((BI, SLOTS), float("inf"), tl.float32)
    indices = tl.full((BI, SLOTS), NOBODY, tl.int32)
    allowed = tl.zeros((BI,), tl.int32)  # prototypes that the row may use, those with a number
    numbers = tl.zeros((BI,), tl.int32)
    for first in range(0, K, BJ):
        j = first + column
        in_j = j < K
        other = tl.load(SIZE + j, mask=in_j, other=0.0)
        value = expanded(
            X, NEAR, CENTRE, own, other, i, j, in_i, in_j, D, METRIC, BI, BJ, BK, PRECISION
        )
        use = in_i[:, None] & in_j[None, :]
        if HAS_MASK:
            at = i.to(tl.int64)[:, None] * mask_stride + j[None, :]
            use = use & (tl.load(MASK + at, mask=use, other=0) != 0)
        allowed += tl.sum(use.to(tl.int32), 1)
        use = use & (value == value)
        numbers += tl.sum(use.to(tl.int32), 1)
        value = tl.where(use, value, float("inf"))
        worst, worst_index = worst_of(values, indices, valid)
        entering = could_enter(value, own, other, j, worst, worst_index, METRIC)
        left = tl.max(tl.max(entering.to(tl.int32), 1), 0)
        while left > 0:
            # The most promising candidate of each row; BJ where there is none.
            entering = could_enter(value, own, other, j, worst, worst_index, METRIC)
            candidate = tl.where(entering, value, float("inf"))
            least = tl.min(candidate, 1)
            best = tl.min(
                tl.where(entering & (candidate == least[:, None]), column[None, :], BJ), 1
            )
            found = best < BJ
            index = first + best
            exact = measured(X, MU, NEAR, own, i, index, found, D, METRIC, BI, BK)
            better = (exact < worst) | ((exact == worst) & (index < worst_index))
            better = better & found & (exact < float("inf"))
            here = place_of(values, indices, valid, worst, worst_index, SLOTS) & better[:, None]
            values = tl.where(here, exact[:, None], values)
            indices = tl.where(here, index[:, None], indices)
            value = tl.where(column[None, :] == best[:, None], float("inf"), value)
            worst, worst_index = worst_of(values, indices, valid)
            entering = could_enter(value, own, other, j, worst, worst_index, METRIC)
            left = tl.max(tl.max(entering.to(tl.int32), 1), 0)
    all_nan = (allowed > 0) & (numbers == 0)
    for slot in range(k):
        value = tl.min(tl.where(valid[None, :], values, float("inf")), 1)
        same = valid[None, :] & (values == value[:, None])
        index = tl.min(tl.where(same, indices, NOBODY), 1)
        here = place_of(values, indices, valid, value, index, SLOTS)
        values = tl.where(here, float("inf"), values)
        indices = tl.where(here, NOBODY, indices)
        if METRIC == EUCLIDEAN:
            value = tl.sqrt_rn(value)
        at = i.to(tl.int64) * k + slot
        tl.store(VALUE + at, tl.where(all_nan, float("nan"), value), mask=in_i)
        tl.store(INDEX + at, tl.where(index == NOBODY, -1, index).to(tl.int64), mask=in_i)


def prototype_assign(
    x: Tensor, mu: Tensor, mask: Tensor | None, metric: int, k: int
) -> tuple[Tensor, Tensor]:
    """distance (N, k) and index (N, k), nearest first."""
    n, (K, D) = len(x), mu.shape
    prototypes = prepare(x, mu, metric)
    value, index = mu.new_empty(n, k), mu.new_empty(n, k, dtype=torch.int64)
    launch(
        assign_rows, -(-n // ASSIGN.BI), x, x, *prototypes.tensors, bytes_of(mask, 0, n), value,
        index, n, K, D, row_stride(mask), k, HAS_MASK=mask is not None,
        SLOTS=1 << (k - 1).bit_length(), **options_of(ASSIGN, metric, D),
    )  # fmt: skip
    return value, index
