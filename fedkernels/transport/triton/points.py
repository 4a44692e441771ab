"""Sinkhorn between points: no matrix of n x m is ever held, blocks of it stay on the chip."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels._triton import PRECISION, Blocks, launch, padded
from fedkernels.transport.triton.centre import centre_of_points, centre_points
from fedkernels.transport.triton.configurations import (
    APPLY,
    BACKWARD,
    CENTRE,
    CHUNK,
    COLUMNS,
    PLAN,
    POINTS,
)
from fedkernels.transport.triton.plan import plan_points, points_backward
from fedkernels.transport.triton.products import product
from fedkernels.transport.triton.solve import (
    PLAIN,
    RELAXED,
    SYMMETRIC,
    Solution,
    Source,
    outputs,
    solve,
    stride,
)

COSINE = 2


def source_of(
    x: Tensor, y: Tensor, sizes: Tensor | None, metric: int, batch: int
) -> tuple[Source, Tensor]:
    """Points centred (or of length 1) for each problem, and the counts of what is not finite."""
    n, m, D = x.shape[1], y.shape[1], x.shape[2]
    BK = padded(D, CENTRE.BK)
    options = {"BI": CENTRE.BI, "BK": BK, "HAS_SIZES": sizes is not None}
    warps = {"num_warps": CENTRE.warps, "num_stages": CENTRE.stages}
    centre = x.new_empty(batch, D)
    if metric != COSINE:
        blocks = -(-D // BK)
        launch(
            centre_of_points, batch * blocks, x, x, y, sizes, centre, n, m, stride(x), stride(y),
            D, blocks, **options, **warps,
        )  # fmt: skip
    counts = [-(-extent // CENTRE.BI) for extent in (n, m)]
    bad = x.new_empty(batch, sum(counts), dtype=torch.int32)
    sides = []
    for side, (points, blocks, first) in enumerate(((x, counts[0], 0), (y, counts[1], counts[0]))):
        extent = points.shape[1]
        out, norm = x.new_empty(batch, extent, D), x.new_empty(batch, extent)
        launch(
            centre_points, batch * blocks, x, points, sizes, centre, out, norm, bad[:, first:],
            extent, stride(points), D, blocks, bad.stride(0), SIDE=side, SOURCE=metric, **options,
            **warps,
        )  # fmt: skip
        sides.append((out, norm))
    (x_, x_norm), (y_, y_norm) = sides
    return Source(metric, x_, y_, x_norm, y_norm, n * D, m * D, 0, 0, D), bad


def _cut(blocks: Blocks, D: int) -> Blocks:
    return blocks._replace(BK=padded(D, blocks.BK))


def sinkhorn_points_forward(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    batch: int,
    metric: int,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    sor: bool,
    symmetric: bool,
) -> Solution:
    """The streaming kernels on blocks of products, in a class by each problem's longer side."""
    if symmetric:
        y, b = x, a
    n, m, D = x.shape[1], y.shape[1], x.shape[2]
    results = outputs(x, batch, n, m, sizes is not None)
    source, bad = source_of(x, y, sizes, metric, batch)
    step = SYMMETRIC if symmetric else RELAXED if sor else PLAIN
    below = -1
    for largest, blocks in POINTS:
        has = below < max(n, m) if sizes is not None else below < max(n, m) <= largest
        if has:
            solve(
                source, bad, _cut(blocks, D), (below, largest), a, b, eps, sizes, g0, rho_a, rho_b,
                max_iter, tol, step, results,
            )  # fmt: skip
        below = largest
    return results


def sinkhorn_points_plan(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """scale_b exp2(K + u_i + v_j) (B, n, m)."""
    (batch, n), m, D = u.shape, v.shape[1], x.shape[2]
    source, _ = source_of(x, y, sizes, metric, batch)
    out = u.new_empty(batch, n, m)
    row_blocks, blocks = -(-n // PLAN.BI), -(-m // PLAN.BJ)
    launch(
        plan_points, batch * row_blocks * blocks, u, *source.sides, eps, sizes, u, v, scale, out,
        n, m, *source.steps, row_blocks, blocks, stride(eps), HAS_SIZES=sizes is not None,
        HAS_SCALE=scale is not None, SOURCE=metric, BI=PLAN.BI, BJ=PLAN.BJ, BK=padded(D, PLAN.BK),
        PRECISION=PRECISION, num_warps=PLAN.warps, num_stages=PLAN.stages,
    )  # fmt: skip
    return out


def sinkhorn_points_apply(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    V: Tensor,
    transpose: bool,
) -> Tensor:
    """P V, or P^T V."""
    source, _ = source_of(x, y, sizes, metric, len(u))
    return product(source, _cut(APPLY, x.shape[2]), eps, sizes, u, v, V, transpose)


def sinkhorn_points_backward(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    metric: int,
    u: Tensor,
    v: Tensor,
    w0: Tensor,
    w1: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """dx and dy of sum_ij W_ij C_ij with W = P (w0 + w1 C + alpha_i + beta_j), W held fixed."""
    batch, D = len(u), x.shape[2]
    source, _ = source_of(x, y, sizes, metric, batch)
    BD, blocks = padded(D, COLUMNS), -(-D // padded(D, COLUMNS))
    gradients = []
    for side, own, other, mine, theirs, column in (
        (source, u, v, alpha, beta, False),
        (source.turned(), v, u, beta, alpha, True),
    ):
        n, m = own.shape[1], other.shape[1]
        new = u.new_empty if sizes is None else u.new_zeros
        out = new((batch, n, D))
        row_blocks = -(-n // BACKWARD.BI)
        launch(
            points_backward, batch * row_blocks * blocks, u, *side.sides, eps, sizes, own, other,
            w0, w1, mine, theirs, out, n, m, *side.steps, row_blocks, blocks, stride(eps),
            COLUMN=column, HAS_SIZES=sizes is not None, HAS_ALPHA=mine is not None,
            HAS_BETA=theirs is not None, SOURCE=metric, BI=BACKWARD.BI, BJ=BACKWARD.BJ,
            BK=padded(D, BACKWARD.BK), BD=BD, PRECISION=PRECISION, CHUNK=CHUNK,
            num_warps=BACKWARD.warps, num_stages=BACKWARD.stages,
        )  # fmt: skip
        gradients.append(out)
    return gradients[0], gradients[1]
