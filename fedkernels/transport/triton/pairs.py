"""Conditional transport: blocks of costs and logits, forward along one side, gradients of one side.

As in `blocks.py` a program holds entries of an "own" side and walks along the "other"; rows and
columns exchanged, the same code serves the other direction. Raw points make cosines and dots,
points centred on the mean of y make distances.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import dot_, log2_
from fedkernels._triton.points import products

COSINE = tl.constexpr(0)
SQEUCLIDEAN = tl.constexpr(1)
DOT = tl.constexpr(0)
COSINE_LOGITS = tl.constexpr(1)
NEG_COST = tl.constexpr(2)


@triton.jit
def norms(
    X, CENTRE, NEAR, SQUARE, INVERSE, n, D, blocks, CENTRED: tl.constexpr, BI: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """1 / |x| (0 for a zero vector), and where CENTRED x - centre with its squared norm."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BI + tl.arange(0, BI)
    in_i = i < n
    squares = tl.zeros((BI,), tl.float64)
    near_squares = tl.zeros((BI,), tl.float64)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        inside = in_i[:, None] & (d < D)[None, :]
        at = (problem * n + i)[:, None] * D + d[None, :]
        x = tl.load(X + at, mask=inside, other=0.0)
        wide = x.to(tl.float64)
        squares += tl.sum(wide * wide, 1)
        if CENTRED:
            centre = tl.load(CENTRE + problem * D + d, mask=d < D, other=0.0)
            near = tl.where(inside, x - centre[None, :], 0.0)
            tl.store(NEAR + at, near, mask=inside)
            wide = near.to(tl.float64)
            near_squares += tl.sum(wide * wide, 1)
    at = problem * n + i
    single = squares.to(tl.float32)
    # What float32 cannot hold counts as 0 and as infinite.
    zero = (single < 1.1754944e-38) | (single == float("inf"))
    inverse = tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, squares)))
    tl.store(INVERSE + at, inverse.to(tl.float32), mask=in_i)
    if CENTRED:
        tl.store(SQUARE + at, near_squares.to(tl.float32), mask=in_i)


@triton.jit
def pair_block(
    x, y, x_near, y_near, x_inverse, y_inverse, x_square, y_square, i, j, in_i, in_j, D,
    temperature, COST: tl.constexpr, LOGITS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Costs, cosines (0 where nothing needs them) and logits of a block."""
    dot = tl.zeros((BI, BJ), tl.float32)
    cos = tl.zeros((BI, BJ), tl.float32)
    if (COST == COSINE) or (LOGITS != NEG_COST):
        dot = products(x, y, x, i, j, in_i, in_j, D, False, BI, BJ, BK, PRECISION)
    if (COST == COSINE) or (LOGITS == COSINE_LOGITS):
        mine = tl.load(x_inverse + i, mask=in_i, other=0.0)
        theirs = tl.load(y_inverse + j, mask=in_j, other=0.0)
        cos = dot * mine[:, None] * theirs[None, :]
    if COST == COSINE:
        c = 1.0 - cos
    else:
        near = products(x_near, y_near, x_near, i, j, in_i, in_j, D, False, BI, BJ, BK, PRECISION)
        mine = tl.load(x_square + i, mask=in_i, other=0.0)
        theirs = tl.load(y_square + j, mask=in_j, other=0.0)
        c = mine[:, None] + theirs[None, :] - 2.0 * near
        c = tl.where(c < 0.0, 0.0, c)
    if LOGITS == NEG_COST:
        logit = -c
    elif LOGITS == COSINE_LOGITS:
        logit = cos
    else:
        logit = dot
    return c, cos, logit / temperature


@triton.jit
def load_mass(Q, problem, j, in_j, m, HAS: tl.constexpr):
    if HAS:
        return tl.load(Q + problem * m + j, mask=in_j, other=0.0)
    else:
        return tl.where(in_j, 1.0 / tl.maximum(m + tl.zeros_like(j), 1).to(tl.float32), 0.0)


@triton.jit
def conditional_side(
    X, Y, NEAR_X, NEAR_Y, INVERSE_X, INVERSE_Y, SQUARE_X, SQUARE_Y, Q, COSTS, LSES, n, m, D,
    blocks, temperature, HAS_Q: tl.constexpr, COST: tl.constexpr, LOGITS: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log sum_j q_j exp(s_ij) and the expected cost of a block of own entries."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BI + tl.arange(0, BI)
    in_i = i < n
    own = problem * n
    other = problem * m
    largest = tl.full((BI,), float("-inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    cost = tl.zeros((BI,), tl.float32)
    for start in range(0, m, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < m
        c, _, s = pair_block(
            X + own * D, Y + other * D, NEAR_X + own * D, NEAR_Y + other * D, INVERSE_X + own,
            INVERSE_Y + other, SQUARE_X + own, SQUARE_Y + other, i, j, in_i, in_j, D, temperature,
            COST, LOGITS, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        log_q = log2_(load_mass(Q, problem, j, in_j, m, HAS_Q))
        score = tl.fma(s, 1.4426950408889634, log_q[None, :])
        above = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        weight = tl.exp2(score - base[:, None])
        scale = tl.exp2(largest - base)
        total = total * scale + tl.sum(weight, 1)
        cost = cost * scale + tl.sum(weight * c, 1)
        largest = above
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = (tl.where(empty, 0.0, largest) + log2_(total)) * 0.6931471805599453
    tl.store(COSTS + own + i, tl.where(empty, 0.0, cost / total), mask=in_i)
    tl.store(LSES + own + i, tl.where(empty, float("-inf"), lse), mask=in_i)


@triton.jit
def load_side(COSTS, LSES, G_COST, G_LSE, at, inside):
    """What a side's entry weighs its pairs with; silent where no gradient comes in."""
    expected = tl.load(COSTS + at, mask=inside, other=0.0)
    lse = tl.load(LSES + at, mask=inside, other=float("-inf"))
    g_cost = tl.load(G_COST + at, mask=inside, other=0.0)
    g_lse = tl.load(G_LSE + at, mask=inside, other=0.0)
    silent = ((g_cost == 0.0) & (g_lse == 0.0)) | (lse == float("-inf"))
    g_cost = tl.where(silent, 0.0, g_cost)
    g_lse = tl.where(silent, 0.0, g_lse)
    return silent.to(tl.int32), expected, tl.where(silent, 0.0, lse), g_cost, g_lse


@triton.jit
def conditional_gradient(
    X, Y, NEAR_X, NEAR_Y, INVERSE_X, INVERSE_Y, SQUARE_X, SQUARE_Y, P, Q, X_COST, Y_COST, X_LSE,
    Y_LSE, X_GCOST, Y_GCOST, X_GLSE, Y_GLSE, DX, DP, n, m, D, row_blocks, blocks, temperature,
    HAS_P: tl.constexpr, HAS_Q: tl.constexpr, NEED_X: tl.constexpr, NEED_P: tl.constexpr,
    COST: tl.constexpr, LOGITS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of a block of own entries and BD features, and their dp."""
    program = tl.program_id(0)
    problem = (program // (row_blocks * blocks)).to(tl.int64)
    i = (program // blocks % row_blocks) * BI + tl.arange(0, BI)
    part = program % blocks
    d = part * BD + tl.arange(0, BD)
    in_i = i < n
    in_d = d < D
    own = problem * n
    other = problem * m
    own_silent, own_cost, own_lse, own_gcost, own_glse = load_side(
        X_COST, X_LSE, X_GCOST, X_GLSE, own + i, in_i
    )
    p = load_mass(P, problem, i, in_i, n, HAS_P)
    mine = tl.load(INVERSE_X + own + i, mask=in_i, other=0.0)
    raw = tl.zeros((BI, BD), tl.float32)
    centred = tl.zeros((BI, BD), tl.float32)
    weight = tl.zeros((BI,), tl.float32)
    along = tl.zeros((BI,), tl.float32)
    dp = tl.zeros((BI,), tl.float32)
    for start in range(0, m, BJ):
        j = start + tl.arange(0, BJ)
        in_j = j < m
        inside = in_i[:, None] & in_j[None, :]
        c, cos, s = pair_block(
            X + own * D, Y + other * D, NEAR_X + own * D, NEAR_Y + other * D, INVERSE_X + own,
            INVERSE_Y + other, SQUARE_X + own, SQUARE_Y + other, i, j, in_i, in_j, D, temperature,
            COST, LOGITS, BI, BJ, BK, PRECISION,
        )  # fmt: skip
        silent, cost, lse, gcost, glse = load_side(Y_COST, Y_LSE, Y_GCOST, Y_GLSE, other + j, in_j)
        q = load_mass(Q, problem, j, in_j, m, HAS_Q)
        theirs = tl.load(INVERSE_Y + other + j, mask=in_j, other=0.0)
        use_own = inside & (own_silent == 0)[:, None]
        use_other = inside & (silent == 0)[None, :]
        # exp(s - lse) is a conditional probability per unit of mass; its exponent is in log2.
        by_own = tl.exp2((s - own_lse[:, None]) * 1.4426950408889634)
        by_own = tl.where(use_own, by_own, 0.0)
        by_other = tl.exp2((s - lse[None, :]) * 1.4426950408889634)
        by_other = tl.where(use_other, by_other, 0.0)
        own_logit = own_gcost[:, None] * tl.where(use_own, c - own_cost[:, None], 0.0)
        own_logit += own_glse[:, None]
        other_logit = gcost[None, :] * tl.where(use_other, c - cost[None, :], 0.0)
        other_logit += glse[None, :]
        dp += tl.sum(by_other * other_logit, 1)
        by_own *= q[None, :]
        by_other *= p[:, None]
        dc = by_own * own_gcost[:, None] + by_other * gcost[None, :]
        ds = (by_own * own_logit + by_other * other_logit) / temperature
        if LOGITS == NEG_COST:
            dc -= ds
        if NEED_X:
            dcos = tl.zeros((BI, BJ), tl.float32)
            if COST == COSINE:
                dcos -= dc
            else:
                weight += tl.sum(dc, 1)
                at = (other + j)[:, None] * D + d[None, :]
                near = tl.load(NEAR_Y + at, mask=in_j[:, None] & in_d[None, :], other=0.0)
                centred = dot_(dc, near, centred, PRECISION)
            if LOGITS == COSINE_LOGITS:
                dcos += ds
            if (COST == COSINE) or (LOGITS != NEG_COST):
                pull = dcos * mine[:, None] * theirs[None, :]
                if LOGITS == DOT:
                    pull += ds
                along += tl.sum(dcos * cos, 1)
                at = (other + j)[:, None] * D + d[None, :]
                y = tl.load(Y + at, mask=in_j[:, None] & in_d[None, :], other=0.0)
                raw = dot_(pull, y, raw, PRECISION)
    if NEED_P:
        if part == 0:
            tl.store(DP + own + i, dp, mask=in_i)
    if NEED_X:
        at = (own + i)[:, None] * D + d[None, :]
        inside_x = in_i[:, None] & in_d[None, :]
        gradient = raw
        if COST != COSINE:
            near = tl.load(NEAR_X + at, mask=inside_x, other=0.0)
            gradient += 2.0 * (weight[:, None] * near - centred)
        if (COST == COSINE) or (LOGITS == COSINE_LOGITS):
            x = tl.load(X + at, mask=inside_x, other=0.0)
            gradient -= (along * mine * mine)[:, None] * x
        tl.store(DX + at, gradient, mask=inside_x)
