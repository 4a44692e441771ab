"""Launches of conditional transport; each direction is a walk along the other side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedkernels._triton import PRECISION, Blocks, launch, padded
from fedkernels._triton.centre import centre_of
from fedkernels.transport.triton.configurations import (
    CENTRE,
    COLUMNS,
    CONDITIONAL,
    CONDITIONAL_GRADIENT,
)
from fedkernels.transport.triton.pairs import (
    conditional_gradient,
    conditional_side,
    norms,
)

SQEUCLIDEAN = 1
NEED_X, NEED_Y, NEED_P, NEED_Q = (1 << bit for bit in range(4))


@dataclass(frozen=True)
class Side:
    """One side's points: raw, centred, inverse norms, squared norms of the centred ones."""

    points: Tensor
    near: Tensor
    inverse: Tensor
    square: Tensor

    def with_other(self, other: Side) -> tuple[Tensor, ...]:
        """The pointers that a kernel takes, this side being its own."""
        return (
            self.points, other.points, self.near, other.near, self.inverse, other.inverse,
            self.square, other.square,
        )  # fmt: skip


def _sides(x: Tensor, y: Tensor, cost: int) -> tuple[Side, Side]:
    batch, _, D = x.shape
    BK, centred = padded(D, CENTRE.BK), cost == SQEUCLIDEAN
    warps = {"num_warps": CENTRE.warps, "num_stages": CENTRE.stages}
    centre = centre_of(x, y, CENTRE) if centred else x.new_empty(batch, D)
    sides = []
    for points in (x, y):
        extent = points.shape[1]
        near = points.new_empty(tuple(points.shape)) if centred else points
        inverse, square = (x.new_empty(batch, extent) for _ in range(2))
        blocks = -(-extent // CENTRE.BI)
        launch(
            norms, batch * blocks, x, points, centre, near, square, inverse, extent, D, blocks,
            CENTRED=centred, BI=CENTRE.BI, BK=BK, **warps,
        )  # fmt: skip
        sides.append(Side(points, near, inverse, square))
    return sides[0], sides[1]


def _options(blocks: Blocks, D: int, cost: int, logits: int) -> dict[str, Any]:
    return {
        "COST": cost,
        "LOGITS": logits,
        "BI": blocks.BI,
        "BJ": blocks.BJ,
        "BK": padded(D, blocks.BK),
        "PRECISION": PRECISION,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def conditional_transport_forward(
    x: Tensor,
    y: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    cost: int,
    logits: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """row_cost (B, N), col_cost (B, M), row_lse (B, N), col_lse (B, M)."""
    rows, columns = _sides(x, y, cost)
    D = x.shape[2]
    options = _options(CONDITIONAL, D, cost, logits)
    found = []
    for own, other, mass in ((rows, columns, q), (columns, rows, p)):
        batch, n = own.points.shape[:2]
        costs, lses = x.new_empty(batch, n), x.new_empty(batch, n)
        blocks = -(-n // CONDITIONAL.BI)
        launch(
            conditional_side, batch * blocks, x, *own.with_other(other), mass, costs, lses, n,
            other.points.shape[1], D, blocks, temperature, HAS_Q=mass is not None, **options,
        )  # fmt: skip
        found.append((costs, lses))
    (row_cost, row_lse), (col_cost, col_lse) = found
    return row_cost, col_cost, row_lse, col_lse


def conditional_transport_backward(
    x: Tensor,
    y: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    row_cost: Tensor,
    col_cost: Tensor,
    row_lse: Tensor,
    col_lse: Tensor,
    g_row_cost: Tensor,
    g_col_cost: Tensor,
    g_row_lse: Tensor,
    g_col_lse: Tensor,
    cost: int,
    logits: int,
    temperature: float,
    need: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, dp, dq; what ``need`` leaves out has no elements."""
    rows, columns = _sides(x, y, cost)
    D = x.shape[2]
    BD = padded(D, COLUMNS)
    options = _options(CONDITIONAL_GRADIENT, D, cost, logits)
    of_rows = row_cost, row_lse, g_row_cost, g_row_lse
    of_columns = col_cost, col_lse, g_col_cost, g_col_lse
    gradients = []
    for own, other, mine, theirs, mass, other_mass, points_bit, mass_bit in (
        (rows, columns, of_rows, of_columns, p, q, NEED_X, NEED_P),
        (columns, rows, of_columns, of_rows, q, p, NEED_Y, NEED_Q),
    ):
        batch, n = own.points.shape[:2]
        points, masses = bool(need & points_bit), bool(need & mass_bit)
        out = x.new_empty((batch, n, D) if points else (0,))
        out_mass = x.new_empty((batch, n) if masses else (0,))
        if points or masses:
            row_blocks = -(-n // CONDITIONAL_GRADIENT.BI)
            # The masses' gradient needs one program for each block of rows, whatever D is.
            blocks = max(-(-D // BD), 1) if points else 1
            both = (side for pair in zip(mine, theirs, strict=True) for side in pair)
            launch(
                conditional_gradient, batch * row_blocks * blocks, x, *own.with_other(other), mass,
                other_mass, *both, out, out_mass, n, other.points.shape[1], D, row_blocks, blocks,
                temperature, HAS_P=mass is not None, HAS_Q=other_mass is not None, NEED_X=points,
                NEED_P=masses, BD=BD, **options,
            )  # fmt: skip
        gradients.append((out, out_mass))
    (dx, dp), (dy, dq) = gradients
    return dx, dy, dp, dq
