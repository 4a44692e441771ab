"""What a batch of problems is before the first iteration: masses, units, masks, statuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)

# Largest relative mismatch of two balanced totals that is scaled away: rounding of a sum of masses
# that were normalised in the same dtype, with room for sums over thousands of entries.
MISMATCH = {torch.float32: 1e-4, torch.float64: 1e-6}


@dataclass(frozen=True)
class Problems:
    """B problems in one padded block; T is the dtype of the cost."""

    rows: Tensor  # (B, n) bool, the valid rows
    columns: Tensor  # (B, m) bool
    a: Tensor  # (B, n) T, 0 in the padding
    b: Tensor  # (B, m) T
    log_a: Tensor  # (B, n) T, log2, -inf at zero mass
    log_b: Tensor  # (B, m) T
    total_a: Tensor  # (B,) float64
    total_b: Tensor  # (B,) float64
    eps: Tensor  # (B,) float64
    scale: Tensor  # (B,) T, log2(e) / eps rounded once
    damping_a: Tensor  # (B,) T, rho_a / (rho_a + eps), 1 where balanced
    damping_b: Tensor  # (B,) T
    status: Tensor  # (B,) uint8, what is known before the first iteration
    live: Tensor  # (B,) bool, the problems that are iterated

    @property
    def valid(self) -> Tensor:
        """(B, n, m) bool, the cells of each problem."""
        return self.rows[:, :, None] & self.columns[:, None, :]


def scale_of(eps: Tensor, dtype: torch.dtype) -> Tensor:
    """log2(e) / eps in double, rounded once."""
    return (math.log2(math.e) / eps).to(dtype)


def damping_of(rho: float, eps: Tensor, dtype: torch.dtype) -> Tensor:
    """rho / (rho + eps); 1 for a side that is balanced (rho = inf)."""
    if math.isinf(rho):
        return torch.ones_like(eps, dtype=dtype)
    return (rho / (rho + eps)).to(dtype)


def within(
    sizes: Tensor | None, side: int, batch: int, extent: int, device: torch.device
) -> Tensor:
    """(B, extent) bool: the positions that belong to the problem, on side 0 (rows) or 1."""
    if sizes is None:
        return torch.ones(batch, extent, dtype=torch.bool, device=device)
    return torch.arange(extent, device=device) < sizes[:, side, None]


def _uniform(total: Tensor, mask: Tensor) -> Tensor:
    """The total spread evenly over the valid positions, in double."""
    return torch.where(mask, (total / mask.sum(1).clamp(min=1))[:, None], 0.0)


def _masses(
    a: Tensor | None, b: Tensor | None, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides and their totals in double; a side that is None takes the other's total, or 1."""
    given = [
        None if mass is None else torch.where(mask, mass.double(), 0.0)
        for mass, mask in ((a, rows), (b, columns))
    ]
    totals = [None if mass is None else mass.sum(1) for mass in given]
    one = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    sides = []
    for mask, mass, total, other in zip(
        (rows, columns), given, totals, reversed(totals), strict=True
    ):
        if mass is None or total is None:
            # An empty side holds nothing, whatever the other side holds.
            total = torch.where(mask.any(1), one if other is None else other, 0.0)
            mass = _uniform(total, mask)
        sides.append((mass, total))
    (mass_a, total_a), (mass_b, total_b) = sides
    return mass_a, mass_b, total_a, total_b


def prepare(
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    shape: tuple[int, int, int],
    rho: tuple[float, float],
    finite: Tensor,
    dtype: torch.dtype,
) -> Problems:
    """Masks, masses and the status of every problem; ``finite`` (B,) says what the cost allows."""
    batch, n, m = shape
    device = eps.device
    rows, columns = (within(sizes, side, batch, k, device) for side, k in ((0, n), (1, m)))
    eps = eps.expand(batch)
    scale = scale_of(eps, dtype)
    a_wide, b_wide, total_a, total_b = _masses(a, b, rows, columns)

    # float32 cannot hold log2(e) / eps for an eps near the limits of double.
    finite = finite & eps.isfinite() & (eps > 0) & scale.isfinite() & (scale > 0)
    finite = finite & total_a.isfinite() & total_b.isfinite()
    if g0 is not None:
        finite = finite & (g0.isfinite() | ~columns).all(1)

    negative = (a_wide < 0).any(1) | (b_wide < 0).any(1)
    empty = ~(rows.any(1) & columns.any(1))
    nothing = (total_a == 0) | (total_b == 0)
    larger = torch.maximum(total_a, total_b)
    if math.isinf(rho[0]) and math.isinf(rho[1]):
        unequal = (total_a - total_b).abs() > MISMATCH[dtype] * larger
        b_wide = torch.where(nothing[:, None], b_wide, b_wide * (total_a / total_b)[:, None])
        total_b = torch.where(nothing | unequal, total_b, total_a)
    else:
        # With an empty plan, a balanced side must be empty too.
        unequal = torch.zeros_like(nothing)
        for side, total in zip(rho, (total_a, total_b), strict=True):
            if math.isinf(side):
                unequal |= nothing & (total > 0)
    infeasible = negative | unequal | (empty & (larger > 0))

    status = torch.full((batch,), CONVERGED, dtype=torch.uint8, device=device)
    status = status.masked_fill(empty, EMPTY)
    status = status.masked_fill(infeasible, INFEASIBLE).masked_fill(~finite, NON_FINITE)
    a_T, b_T = a_wide.to(dtype), b_wide.to(dtype)
    return Problems(
        rows=rows,
        columns=columns,
        a=a_T,
        b=b_T,
        # In double, so that denormal masses keep their logarithm where float32 flushes them.
        log_a=a_T.double().log2().to(dtype),
        log_b=b_T.double().log2().to(dtype),
        total_a=total_a,
        total_b=total_b,
        eps=eps,
        scale=scale,
        damping_a=damping_of(rho[0], eps, dtype),
        damping_b=damping_of(rho[1], eps, dtype),
        status=status,
        live=finite & ~infeasible & ~empty & ~nothing,
    )
