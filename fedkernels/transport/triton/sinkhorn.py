"""Batched Sinkhorn on a cost matrix: which kernel takes which problem."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from fedkernels._triton import launch, split_double
from fedkernels.transport.triton.configurations import (
    EXTENTS,
    MATRIX,
    MATRIX_APPLY,
    PLAN_CELLS,
    REGISTERS,
    UNBOUNDED,
)
from fedkernels.transport.triton.plan import plan_matrix
from fedkernels.transport.triton.prepare import scan_matrix
from fedkernels.transport.triton.products import product
from fedkernels.transport.triton.registers import sinkhorn_registers
from fedkernels.transport.triton.solve import (
    PLAIN,
    RELAXED,
    Solution,
    Source,
    outputs,
    solve,
    stride,
)


def matrix(cost: Tensor) -> Source:
    """A cost matrix as the source of blocks."""
    step, m = stride(cost), cost.shape[-1]
    return Source(-1, cost, cost, cost, cost, step, step, m, 1, 0)


def classes(n: int, m: int, sizes: Tensor | None) -> list[tuple[int, int]]:
    """Padded (rows, columns) of the register classes that problems in an (n, m) block can have."""
    sides = []
    for extent in (n, m):
        own = bisect_left(EXTENTS, extent)
        first = own if sizes is None else 0
        sides.append(range(first, min(own + 1, len(EXTENTS))))
    return [(EXTENTS[k], EXTENTS[l]) for k in sides[0] for l in sides[1]]


def _above(extent: int) -> int:
    """Largest size that belongs to the class below."""
    k = EXTENTS.index(extent)
    return EXTENTS[k - 1] if k else -1


def sinkhorn_forward(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    batch: int,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    log: bool,
    sor: bool,
) -> Solution:
    """Each problem by the class of its own size: registers, one program, or many."""
    n, m = cost.shape[-2:]
    results = outputs(cost, batch, n, m, sizes is not None)
    for rows, columns in classes(n, m, sizes):
        group, warps = REGISTERS[rows * columns]
        launch(
            sinkhorn_registers, -(-batch // group), cost, cost, a, b, eps, sizes, g0, *results,
            batch, n, m, stride(cost), stride(a), stride(b), stride(eps), stride(g0),
            *split_double(rho_a), *split_double(rho_b), max_iter, tol, G=group, N=rows, M=columns,
            N_ABOVE=_above(rows), M_ABOVE=_above(columns), HAS_A=a is not None,
            HAS_B=b is not None, HAS_SIZES=sizes is not None, HAS_G0=g0 is not None,
            BALANCED_A=math.isinf(rho_a), BALANCED_B=math.isinf(rho_b), LOG=log, SOR=sor,
            num_warps=warps, num_stages=1,
        )  # fmt: skip
    if max(n, m) > EXTENTS[-1]:
        blocks = -(-n // MATRIX.BI)
        bad = cost.new_empty((batch, blocks), dtype=torch.int32)
        launch(
            scan_matrix, batch * blocks, cost, cost, sizes, bad, n, m, blocks, stride(cost),
            HAS_SIZES=sizes is not None, BI=MATRIX.BI, BJ=MATRIX.BJ, num_warps=4, num_stages=1,
        )  # fmt: skip
        solve(
            matrix(cost), bad, MATRIX, (EXTENTS[-1], UNBOUNDED), a, b, eps, sizes, g0, rho_a,
            rho_b, max_iter, tol, RELAXED if sor else PLAIN, results,
        )  # fmt: skip
    return results


def sinkhorn_plan(
    cost: Tensor, eps: Tensor, sizes: Tensor | None, u: Tensor, v: Tensor, scale: Tensor | None
) -> Tensor:
    """scale_b exp2(K + u_i + v_j) (B, n, m)."""
    (batch, n), m = u.shape, v.shape[1]
    out = u.new_empty(batch, n, m)
    BJ = min(max(4, 1 << max(m - 1, 0).bit_length()), 128)
    BI = PLAN_CELLS // BJ
    blocks = -(-m // BJ)
    launch(
        plan_matrix, -(-batch * n // BI) * blocks, u, cost, eps, sizes, u, v, scale, out,
        batch * n, n, m, blocks, stride(cost), stride(eps), HAS_SIZES=sizes is not None,
        HAS_SCALE=scale is not None, BI=BI, BJ=BJ, num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


def sinkhorn_apply(
    cost: Tensor,
    eps: Tensor,
    sizes: Tensor | None,
    u: Tensor,
    v: Tensor,
    V: Tensor,
    transpose: bool,
) -> Tensor:
    """P V, or P^T V."""
    return product(matrix(cost), MATRIX_APPLY, eps, sizes, u, v, V, transpose)
