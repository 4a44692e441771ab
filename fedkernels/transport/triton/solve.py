"""The launches of the streaming kernels, for a cost matrix and for points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels._triton import PRECISION, Blocks, launch, split_double
from fedkernels.transport.triton.configurations import CHUNK, ONE_PROGRAM
from fedkernels.transport.triton.finish import finish, finish_side
from fedkernels.transport.triton.prepare import prepare
from fedkernels.transport.triton.streaming import column_step, iterate, row_step, settle

PLAIN, RELAXED, SYMMETRIC = range(3)

Solution = tuple[Tensor, ...]


@dataclass(frozen=True)
class Source:
    """Where blocks of the cost come from: pointers and strides of the row and the column side.

    A matrix stands for both sides. x_stride and y_stride lead from problem to problem, x_entry and
    y_entry from row to row and from column to column of a matrix.
    """

    kind: int
    x: Tensor
    y: Tensor
    x_norm: Tensor
    y_norm: Tensor
    x_stride: int
    y_stride: int
    x_entry: int
    y_entry: int
    features: int

    @property
    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.y, self.x_norm, self.y_norm

    @property
    def steps(self) -> tuple[int, int, int, int, int]:
        return self.x_stride, self.y_stride, self.x_entry, self.y_entry, self.features

    def turned(self) -> Source:
        """The same with rows and columns exchanged."""
        return Source(
            self.kind,
            self.y,
            self.x,
            self.y_norm,
            self.x_norm,
            self.y_stride,
            self.x_stride,
            self.y_entry,
            self.x_entry,
            self.features,
        )


def stride(tensor: Tensor | None) -> int:
    """Elements from one problem to the next; 0 where all share one."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)


def outputs(like: Tensor, batch: int, n: int, m: int, padded: bool) -> Solution:
    """The eleven results, uninitialised, or 0 where padding has to stay 0."""
    new = like.new_zeros if padded else like.new_empty
    sides = [new((batch, extent)) for extent in (n, m, n, m, n, m)]
    value, linear, error = (like.new_empty(batch) for _ in range(3))
    n_iter = like.new_empty(batch, dtype=torch.int32)
    status = like.new_empty(batch, dtype=torch.uint8)
    return value, linear, *sides, n_iter, error, status


def solve(
    source: Source,
    bad: Tensor,
    blocks: Blocks,
    extents: tuple[int, int],
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    rho_a: float,
    rho_b: float,
    max_iter: int,
    tol: float,
    step: int,
    results: Solution,
) -> None:
    """Writes the results of the problems whose longer side is in the class: above extents[0], at
    most extents[1].

    bad (B, k): counts of entries that are not finite. step: PLAIN, RELAXED or SYMMETRIC; the
    symmetric problem has its columns from its rows.
    """
    value, linear, f, g, u, v, r, c, n_iter, error, status = results
    (batch, n), m = f.shape, g.shape[1]
    like = source.x
    mass_a, log_a = (like.new_empty(batch, n) for _ in range(2))
    mass_b, log_b = (like.new_empty(batch, m) for _ in range(2))
    u2 = like.new_empty(2, batch, n)
    half = batch * n
    units = like.new_empty(batch, 4)
    totals = like.new_empty(batch, 2, dtype=torch.float64)
    state = like.new_empty(batch, dtype=torch.int32)
    rhos = *split_double(rho_a), *split_double(rho_b)
    side_a, side_b = math.isinf(rho_a), math.isinf(rho_b)
    symmetric = step == SYMMETRIC
    has_sizes = sizes is not None
    tiles: dict[str, Any] = {
        "SOURCE": source.kind,
        "BI": blocks.BI,
        "BJ": blocks.BJ,
        "BK": blocks.BK,
        "PRECISION": PRECISION,
        "HAS_SIZES": has_sizes,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
    one: dict[str, Any] = {"num_warps": 4, "num_stages": 1}
    launch(
        prepare, batch, like, a, b, eps, sizes, g0, bad, mass_a, mass_b, log_a, log_b,
        u2 if symmetric else v, units, totals, state, status, n, m, bad.shape[1], stride(a),
        stride(b), stride(eps), stride(g0), *rhos, ABOVE=extents[0], BELOW=extents[1],
        HAS_A=a is not None, HAS_B=b is not None, HAS_SIZES=has_sizes, HAS_G0=g0 is not None,
        BALANCED_A=side_a, BALANCED_B=side_b, CHUNK=CHUNK, **one,
    )  # fmt: skip

    largest = min(max(n, m), extents[1])
    if has_sizes or largest <= ONE_PROGRAM:
        launch(
            iterate, batch, like, *source.sides, sizes, mass_a, mass_b, log_a, log_b, u2, v, units,
            state, n, m, *source.steps, half, max_iter, tol, LIMIT=ONE_PROGRAM, STEP=step,
            BALANCED=side_a, **tiles,
        )  # fmt: skip
    row_blocks, column_blocks = (-(-min(extent, largest) // blocks.BI) for extent in (n, m))
    if largest > ONE_PROGRAM:
        partial = like.new_empty(batch, row_blocks)
        relax = like.new_empty(2, batch, 5)
        for done in range(max_iter):
            launch(
                row_step, batch * row_blocks, like, *source.sides, sizes, mass_a, log_a, u2, v,
                units, relax, state, partial, n, m, *source.steps, half, 5 * batch, row_blocks,
                done, tol, LIMIT=ONE_PROGRAM, STEP=step, BALANCED=side_a, **tiles,
            )  # fmt: skip
            if not symmetric:
                launch(
                    column_step, batch * column_blocks, like, *source.sides, sizes, mass_b, log_b,
                    u2, v, units, relax, state, partial, n, m, *source.steps, half, 5 * batch,
                    row_blocks, column_blocks, done, max_iter, tol, LIMIT=ONE_PROGRAM, STEP=step,
                    **tiles,
                )  # fmt: skip
            elif done > 0 and tol > 0:
                launch(
                    settle, batch, like, sizes, state, partial, n, m, row_blocks, done, tol,
                    LIMIT=ONE_PROGRAM, HAS_SIZES=has_sizes, BI=blocks.BI, **one,
                )  # fmt: skip

    sums = like.new_empty(batch, row_blocks, 4, dtype=torch.float64)
    parts = like.new_empty(batch, column_blocks, dtype=torch.float64)
    columns, columns_half = (u2, half) if symmetric else (v, 0)
    launch(
        finish_side, batch * row_blocks, like, *source.sides, sizes, mass_a, log_a, u2, columns,
        units, state, f, u, r, sums, n, m, *source.steps, half, columns_half, row_blocks, max_iter,
        *split_double(rho_a), COLUMN=False, BALANCED=side_a, **tiles,
    )  # fmt: skip
    turned = source.turned()
    launch(
        finish_side, batch * column_blocks, like, *turned.sides, sizes, mass_b, log_b, columns, u2,
        units, state, g, v, c, parts, m, n, *turned.steps, columns_half, half, column_blocks,
        max_iter, *split_double(rho_b), COLUMN=True, BALANCED=side_b, **tiles,
    )  # fmt: skip
    launch(
        finish, batch, like, sizes, eps, totals, state, sums, parts, value, linear, f, g, u, v, r,
        c, n_iter, error, status, n, m, stride(eps), row_blocks, column_blocks, max_iter, tol,
        *rhos, HAS_SIZES=has_sizes, BALANCED_A=side_a, BALANCED_B=side_b, BI=blocks.BI,
        CHUNK=CHUNK, **one,
    )  # fmt: skip
