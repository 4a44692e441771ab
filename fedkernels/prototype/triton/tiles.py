"""Distances of a block of rows to a block of prototypes; close pairs by direct differences.

Rows are read as they are stored and widened at load. Prototypes come prepared (`prepare.py`): NEAR
is mu - centre for the (squared) Euclidean distance, mu / |mu| for the cosine, mu itself for the
dot; SIZE is |mu - centre|^2, or |mu| for cosine and dot. The centred expansion loses a pair that is
much closer than both points are to the centre: such pairs, few in a block, are gathered and
subtracted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton.points import load_rows, products

SQEUCLIDEAN = tl.constexpr(0)
EUCLIDEAN = tl.constexpr(1)
COSINE = tl.constexpr(2)
DOT = tl.constexpr(3)

SHARE = tl.constexpr(2.0**-17)  # 64 eps: below this share of the norms a pair is close
EUCLIDEAN_SHARE = tl.constexpr(2.0**-8)  # a root doubles what the expansion loses
SMALLEST = tl.constexpr(1.1754944e-38)  # the smallest normal number


@triton.jit
def sizes_of(X, CENTRE, i, in_i, D, METRIC: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr):
    """|x - centre|^2 of rows; |x| for cosine and dot, 0 for a zero vector."""
    squares = tl.zeros((BI,), tl.float64)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        x = load_rows(X, i, in_i, d, D)
        if METRIC < COSINE:
            x = x - tl.load(CENTRE + d, mask=d < D, other=0.0)[None, :]
        wide = x.to(tl.float64)
        squares += tl.sum(wide * wide, 1)
    single = squares.to(tl.float32)
    if METRIC < COSINE:
        return single
    else:
        return tl.where(single < SMALLEST, 0.0, tl.sqrt(squares).to(tl.float32))


@triton.jit
def unit(x, size):
    """x / |x|, 0 for a zero vector. A division: a product would be fused with what follows, and two
    equal vectors would differ."""
    zero = size == 0.0
    return tl.where(zero[:, None], 0.0, tl.div_rn(x, tl.where(zero, 1.0, size)[:, None]))


@triton.jit
def expanded(
    X, NEAR, CENTRE, own, other, i, j, in_i, in_j, D, METRIC: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Squared distances by the expansion (they may be negative), 1 - cosine, or minus the dot; own
    and other are the sizes of the rows and of the prototypes."""
    dot = products(X, NEAR, CENTRE, i, j, in_i, in_j, D, METRIC < COSINE, BI, BJ, BK, PRECISION)
    if METRIC == COSINE:
        zero = own == 0.0
        inverse = tl.where(zero, 0.0, tl.div_rn(1.0, tl.where(zero, 1.0, own)))
        return 1.0 - dot * inverse[:, None]
    elif METRIC == DOT:
        return -dot
    else:
        return own[:, None] + other[None, :] - 2.0 * dot


@triton.jit
def direct(
    X, MU, NEAR, own, i, j, use, D, METRIC: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """|x_i - mu_j|^2, half of |x_i/|x_i| - mu_j/|mu_j||^2 for the cosine, of one j for each row."""
    total = tl.zeros((BI, BK), tl.float32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        x = load_rows(X, i, use, d, D)
        if METRIC == COSINE:
            x = unit(x, own)
            mu = load_rows(NEAR, j, use, d, D)
        else:
            mu = load_rows(MU, j, use, d, D)
        difference = x - mu
        total += difference * difference
    if METRIC == COSINE:
        return 0.5 * tl.sum(total, 1)
    else:
        return tl.sum(total, 1)


@triton.jit
def is_close(value, own, other, in_i, in_j, METRIC: tl.constexpr):
    """Pairs whose expansion is not to be trusted: close ones, and squares that overflow. A point
    with a NaN has nothing to repair."""
    if METRIC == COSINE:
        close = value < SHARE
    else:
        total = own[:, None] + other[None, :]
        if METRIC == EUCLIDEAN:
            close = ~(value >= EUCLIDEAN_SHARE * total)
        else:
            close = ~(value >= SHARE * total)
        close = close & (own == own)[:, None] & (other == other)[None, :]
    return close & in_i[:, None] & in_j[None, :]


@triton.jit
def distances(
    X, MU, NEAR, CENTRE, SIZE, own, i, first, in_i, K, D, METRIC: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Distances of the rows i to the BJ prototypes from `first` on."""
    column = tl.arange(0, BJ)
    j = first + column
    in_j = j < K
    other = tl.load(SIZE + j, mask=in_j, other=0.0)
    value = expanded(
        X, NEAR, CENTRE, own, other, i, j, in_i, in_j, D, METRIC, BI, BJ, BK, PRECISION
    )
    if METRIC != DOT:
        # Each turn takes the next close prototype of every row, in order, until no row has one.
        done = tl.full((BI,), -1, tl.int32)
        close = is_close(value, own, other, in_i, in_j, METRIC)
        left = tl.max(tl.max(close.to(tl.int32), 1), 0)
        while left > 0:
            close = is_close(value, own, other, in_i, in_j, METRIC)
            close = close & (column[None, :] > done[:, None])
            done = tl.min(tl.where(close, column[None, :], BJ), 1)
            exact = direct(X, MU, NEAR, own, i, first + done, done < BJ, D, METRIC, BI, BK)
            value = tl.where(column[None, :] == done[:, None], exact[:, None], value)
            close = is_close(value, own, other, in_i, in_j, METRIC)
            left = tl.max(tl.max((close & (column[None, :] > done[:, None])).to(tl.int32), 1), 0)
    if METRIC < COSINE:
        value = tl.where(value < 0.0, 0.0, value)
        if METRIC == EUCLIDEAN:
            value = tl.sqrt_rn(value)
    return value
