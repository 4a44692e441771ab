"""Envelope gradients of the value to the masses and to eps: formulas on rows, in double.

With the potentials held fixed, and r = P 1, c = P^T 1 (README.md derives them):

    both sides balanced     da = f, projected: the mean over the problem's rows is removed
    finite rho_a            da = rho_a (1 - e^(-f/rho_a)) + eps (m_b - e^(-f/rho_a))
    fixed beside a finite   da = f + eps (m_b - r/a)
    eps                     KL(P | a x b) = (<r,f> + <c,g> - <P,C>) / eps - (sum P - m_a m_b)

reg_type "entropy" has eps (<a, log a> + <b, log b> + m - m^2) more in its value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkernels.transport.problem import total, valid

__all__ = ["Side", "entropy_term", "eps_gradient", "finish", "mass_gradients", "sides"]

# Below this mass r/a is a quotient of rounded denormals; it is 1 wherever the side is met.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Side:
    """One side of every problem, in double: mass (B|1, n), 0 in the padding, and its total."""

    mass: Tensor
    total: Tensor  # (B|1, 1)
    count: Tensor | int  # valid entries, at least 1
    mask: Tensor | None
    absent: bool  # the mass was None: the total (the other side's, or 1) spread evenly

    def masked(self, rows: Tensor) -> Tensor:
        return rows if self.mask is None else torch.where(self.mask, rows, 0.0)

    def mean(self, rows: Tensor) -> Tensor:
        return self.masked(rows).sum(1, keepdim=True) / self.count


def sides(
    a: Tensor | None,
    b: Tensor | None,
    sizes: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
    balanced: bool,
) -> tuple[Side, Side]:
    """Both sides as the kernel sees them: spread where absent, b rescaled where balanced."""
    given = (a, b)
    masks = valid(sizes, 0, shape[0]), valid(sizes, 1, shape[1])
    totals = [None if t is None else total(t, mask) for t, mask in zip(given, masks, strict=True)]
    found = []
    for k, (mass, mask, extent) in enumerate(zip(given, masks, shape, strict=True)):
        count = max(extent, 1) if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        own = totals[k] if totals[k] is not None else totals[1 - k]
        if own is None:
            own = torch.ones(1, 1, dtype=torch.float64, device=device)
        wide = (own / count).expand(-1, extent) if mass is None else mass.double()
        if mask is not None:
            wide = torch.where(mask, wide, 0.0)
        found.append(Side(wide, own, count, mask, mass is None))
    left, right = found
    if balanced and a is not None and b is not None:
        ratio = torch.where(right.total == 0, 1.0, left.total / right.total)
        right = Side(right.mass * ratio, left.total, right.count, right.mask, False)
    return left, right


def mass_gradients(
    both: tuple[Side, Side],
    potentials: tuple[Tensor, Tensor],
    marginals: tuple[Tensor, Tensor],
    rho: tuple[float, float],
    eps: Tensor,
    entropy: bool,
) -> list[Tensor]:
    """(B, n) and (B, m) in double; eps (B|1, 1)."""
    balanced = math.isinf(rho[0]) and math.isinf(rho[1])
    found = []
    for side, other, potential, marginal, penalty in zip(
        both, reversed(both), potentials, marginals, rho, strict=True
    ):
        f = potential.double()
        if balanced:
            gradient = f + eps * _log(side.mass) if entropy else f
        elif math.isinf(penalty):
            usable = side.mass > _SMALLEST
            ratio = marginal.double() / torch.where(usable, side.mass, 1.0)
            gradient = f + eps * (other.total - torch.where(usable, ratio, 1.0))
        else:
            gradient = eps * other.total - (penalty + eps) * torch.expm1(-f / penalty) - eps
        found.append(gradient)
    return finish(found, both, balanced)


def finish(rows: list[Tensor], both: tuple[Side, Side], balanced: bool) -> list[Tensor]:
    """Gradients of two independent sides, projected, or with an absent side's share handed on."""
    if balanced:
        return [g - side.mean(g) for g, side in zip(rows, both, strict=True)]
    # An absent side holds the other's total: its gradient reaches every entry of the other.
    means = [side.mean(g) if side.absent else None for g, side in zip(rows, both, strict=True)]
    return [g if mean is None else g + mean for g, mean in zip(rows, reversed(means), strict=True)]


def eps_gradient(
    both: tuple[Side, Side],
    potentials: tuple[Tensor, Tensor],
    marginals: tuple[Tensor, Tensor],
    linear: Tensor,
    eps: Tensor,
    entropy: bool,
) -> Tensor:
    """(B,) in double; eps (B|1, 1)."""
    a, b = both
    r, c = (t.double() for t in marginals)
    dual = (r * potentials[0].double()).sum(1) + (c * potentials[1].double()).sum(1)
    kl = (dual - linear.double()) / eps[:, 0] - (r.sum(1) - (a.total * b.total)[:, 0])
    return kl + entropy_term(a, b) if entropy else kl


def entropy_term(a: Side, b: Side) -> Tensor:
    """<a, log a> + <b, log b> + m - m^2, (B|1,) in double: sum P log P less KL(P | a x b)."""
    logs = [(side.mass * _log(side.mass)).sum(1) for side in (a, b)]
    m = a.total[:, 0]
    return logs[0] + logs[1] + m - m * m


def _log(mass: Tensor) -> Tensor:
    # The term of a zero mass is left out: its limit in the value is 0, in the gradient -inf.
    return torch.where(mass == 0, 1.0, mass).log()
