"""Conditional transport in plain PyTorch: the specification that every kernel is held to.

For x (B, N, D), y (B, M, D), masses p (B, N) and q (B, M) (None: 1/N and 1/M):

    cost      c_ij = 1 - cos(x_i, y_j)  or  |x_i - y_j|^2
    logit     s_ij = x_i . y_j / t,  cos(x_i, y_j) / t  or  -c_ij / t
    forward   row_lse_i = log sum_j q_j exp(s_ij),   row_cost_i = sum_j pi(j|i) c_ij
    backward  col_lse_j = log sum_i p_i exp(s_ij),   col_cost_j = sum_i pi(i|j) c_ij

with pi(j|i) = q_j exp(s_ij - row_lse_i) and pi(i|j) = p_i exp(s_ij - col_lse_j). A vector whose
squared norm is below the smallest normal number counts as zero: its cosine is 0 (cost 1) and its
gradient through cosines is 0. A side without mass (no points, or all masses 0) has lse -inf, cost 0
and no gradient.

The forward function is ordinary differentiable PyTorch, so higher derivatives exist here and only
here; the backward is the same gradient written out, the form that the kernels implement. It never
divides by a mass, so that the gradient at a mass of 0 is the limit and not NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["conditional_transport_backward", "conditional_transport_forward"]

COSINE, SQEUCLIDEAN = 0, 1
DOT, COSINE_LOGITS, NEG_COST = 0, 1, 2


def conditional_transport_forward(
    x: Tensor,
    y: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    cost: int,
    logits: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row_cost (B, N), col_cost (B, M), row_lse (B, N), col_lse (B, M)), in x's dtype."""
    pairs = _Pairs.of(x, y, cost, logits, temperature)
    row_cost, row_lse = _side(pairs.s, pairs.c, q)
    col_cost, col_lse = _side(pairs.s.mT, pairs.c.mT, p)
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
    """(dx, dy, dp, dq); one that ``need`` (bits in that order) leaves out has no elements.

    A row (column) whose two incoming gradients are 0 takes no part, whatever its values are.
    """
    pairs = _Pairs.of(x, y, cost, logits, temperature)
    s, c = pairs.s, pairs.c
    rows, r_cost, r_logit = _weights(s, c, row_cost, row_lse, g_row_cost, g_row_lse)
    cols, c_cost, c_logit = (
        t.mT for t in _weights(s.mT, c.mT, col_cost, col_lse, g_col_cost, g_col_lse)
    )
    pi_rows = rows * _mass(q, y)[:, None, :]
    pi_cols = cols * _mass(p, x)[:, :, None]
    dc = pi_rows * r_cost + pi_cols * c_cost  # dL/dc_ij
    ds = (pi_rows * r_logit + pi_cols * c_logit) / temperature  # dL/d(temperature * s_ij)
    none = x.new_empty(0)
    return (
        pairs.gradient(dc, ds) if need & 1 else none,
        pairs.turned().gradient(dc.mT, ds.mT) if need & 2 else none,
        (cols * c_logit).sum(2) if need & 4 else none,
        (rows * r_logit).sum(1) if need & 8 else none,
    )


def _side(s: Tensor, c: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """(expected cost, log of the total) over the last dimension, weighted by mass * exp(s)."""
    if s.shape[-1] == 0:
        # Through sums over nothing, so that both depend on what s and c depend on.
        return c.sum(-1), s.sum(-1) - torch.inf
    mass = s.new_full((s.shape[0], s.shape[2]), 1 / s.shape[2]) if mass is None else mass
    mass = mass[:, None, :]
    # Shifted by the largest logit that has mass. The gradient to a mass is exp itself.
    top = torch.where(mass == 0, -torch.inf, s.detach() + mass.detach().log()).amax(-1, True)
    top = torch.where(top.isinf(), 0.0, top)
    weight = mass * (s - top).clamp(max=_largest(s)).exp()
    total = weight.sum(-1)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, total.log() + top[..., 0])
    return torch.where(empty, 0.0, (weight * c).sum(-1) / total), lse


def _weights(
    s: Tensor, c: Tensor, expected: Tensor, lse: Tensor, g_cost: Tensor, g_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(s_ij - lse_i), and the gradients to c_ij and s_ij per unit of pi(j|i)."""
    silent = ((g_cost == 0) & (g_lse == 0)) | (lse == -torch.inf)
    shifted = (s - lse[..., None]).clamp(max=_largest(s)).exp()
    shifted = torch.where(silent[..., None], 0.0, shifted)
    apart = torch.where(silent[..., None], 0.0, c - expected[..., None])
    g_cost, g_lse = (torch.where(silent, 0.0, g)[..., None] for g in (g_cost, g_lse))
    return shifted, g_cost.expand_as(s), g_cost * apart + g_lse


def _largest(s: Tensor) -> float:
    """Exponentials are cut at the 0.9th power of the largest number: inf times a mass of 0 is NaN.

    Only what has no mass, or next to none, comes that far.
    """
    return 0.9 * math.log(torch.finfo(s.dtype).max)


def _mass(mass: Tensor | None, points: Tensor) -> Tensor:
    if mass is not None:
        return mass
    return points.new_full(points.shape[:2], 1 / max(points.shape[1], 1))


def _inverse_norm(points: Tensor) -> Tensor:
    """1/|x_i|, and 0 for a zero vector; NaN stays NaN."""
    squared = points.square().sum(-1, keepdim=True)
    zero = squared < torch.finfo(points.dtype).tiny
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).rsqrt())


def _centre(y: Tensor) -> Tensor:
    """The mean of the finite points, (B, 1, D): distances are formed from centred points.

    Of y alone: a centre that x enters would let one NaN row of x make every row NaN.
    """
    finite = y.detach().isfinite().all(-1, keepdim=True)
    total = torch.where(finite, y.detach(), 0.0).double().sum(1, keepdim=True)
    return (total / finite.sum(1, keepdim=True).clamp(min=1)).to(y.dtype)


@dataclass(frozen=True)
class _Pairs:
    """Logits and costs (B, N, M), and what their gradient to x needs."""

    x: Tensor
    y: Tensor
    centre: Tensor | None
    inverse: tuple[Tensor, Tensor] | None
    cos: Tensor | None
    c: Tensor
    s: Tensor
    logits: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, cost: int, logits: int, temperature: float) -> _Pairs:
        dot = x @ y.mT
        centre, inverse, cos = None, None, None
        if cost == COSINE or logits == COSINE_LOGITS:
            inverse = _inverse_norm(x), _inverse_norm(y)
            cos = dot * inverse[0] * inverse[1].mT
        if cost == COSINE and cos is not None:
            c = 1 - cos
        else:
            centre = _centre(y)
            near, far = x - centre, y - centre
            squares = near.square().sum(-1)[:, :, None] + far.square().sum(-1)[:, None, :]
            c = (squares - 2 * (near @ far.mT)).clamp(min=0)
        logit = -c if logits == NEG_COST else dot
        if logits == COSINE_LOGITS and cos is not None:
            logit = cos
        return cls(x, y, centre, inverse, cos, c, logit / temperature, logits)

    def turned(self) -> _Pairs:
        """The same pairs with x and y in each other's place."""
        inverse = None if self.inverse is None else self.inverse[::-1]
        cos = None if self.cos is None else self.cos.mT
        return _Pairs(self.y, self.x, self.centre, inverse, cos, self.c.mT, self.s.mT, self.logits)

    def gradient(self, dc: Tensor, ds: Tensor) -> Tensor:
        """dx for dL/dc_ij and the gradient to dot, cos or -c, whichever is the logit."""
        if self.logits == NEG_COST:
            dc = dc - ds
        dx = torch.zeros_like(self.x)
        dcos = torch.zeros_like(dc)
        if self.centre is None:
            dcos = dcos - dc
        else:
            near, far = self.x - self.centre, self.y - self.centre
            dx = dx + 2 * (dc.sum(-1, keepdim=True) * near - dc @ far)
        if self.logits == DOT:
            dx = dx + ds @ self.y
        if self.logits == COSINE_LOGITS:
            dcos = dcos + ds
        if self.inverse is not None and self.cos is not None:
            mine, other = self.inverse
            along = (dcos * self.cos).sum(-1, keepdim=True) * mine
            dx = dx + mine * (dcos @ (self.y * other) - along * self.x)
        return dx
