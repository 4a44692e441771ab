"""The three iterations: plain, over-relaxed, and the averaged one of a symmetric problem.

Each runs B problems at once and returns (u, v, n_iter, passed). A problem that has passed the stop
test, or never was live, keeps its bits: `active` masks what is written.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkernels.transport.reference.problem import Problems

Iterated = tuple[Tensor, Tensor, Tensor, Tensor]

# How often the CPU looks whether every problem is done; a GPU never looks, it would have to wait.
_LOOK = 4


def log2_sum_exp2(x: Tensor, dim: int) -> Tensor:
    """log2 sum exp2(x) along ``dim``; -inf where every entry is -inf."""
    largest = x.amax(dim, keepdim=True)
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    return largest.squeeze(dim) + (x - largest).exp2().sum(dim).log2()


def potential(u: Tensor, log_a: Tensor, transform: Tensor, damping: Tensor, s: Tensor) -> Tensor:
    """f = (u - log2 a) / s; at zero mass the (damped) c-transform -log2 sum exp2(K + v) / s."""
    at_zero = -damping[:, None] * transform
    return torch.where(log_a == -math.inf, at_zero, u - log_a) / s[:, None]


def target(mass: Tensor, f: Tensor, rho: float) -> Tensor:
    """The marginal that f asks for: a, or a exp(-f / rho)."""
    return mass if math.isinf(rho) else torch.where(mass > 0, mass * torch.exp(-f / rho), 0.0)


def _marginal_error(u: Tensor, transform: Tensor, p: Problems, rho: float) -> Tensor:
    """sum_i |r_i - target_i| with r_i = exp2(u_i + log2 sum_j exp2(K_ij + v_j))."""
    f = potential(u, p.log_a, transform, p.damping_a, p.scale)
    return ((u + transform).exp2() - target(p.a, f, rho)).abs().sum(1)


def _all_done(k: int, active: Tensor) -> bool:
    return active.device.type == "cpu" and k % _LOOK == 0 and not bool(active.any())


def _rows(K: Tensor, v: Tensor) -> Tensor:
    return log2_sum_exp2(K + v[:, None, :], 2)


def _columns(K: Tensor, u: Tensor) -> Tensor:
    return log2_sum_exp2(K + u[:, :, None], 1)


def plain(K: Tensor, v: Tensor, p: Problems, rho_a: float, max_iter: int, tol: float) -> Iterated:
    """The f step, then the g step; the row pass of an iteration measures the pair before it."""
    u = torch.full_like(p.log_a, -math.inf)
    n_iter = torch.zeros_like(p.live, dtype=torch.int32)
    active, passed = p.live, torch.zeros_like(p.live)
    for k in range(max_iter + 1):
        if _all_done(k, active):
            break
        transform = _rows(K, v)
        if k > 0 and tol > 0:
            reached = active & (_marginal_error(u, transform, p, rho_a) <= tol)
            passed, active = passed | reached, active & ~reached
        if k == max_iter:
            break
        u = torch.where(active[:, None], p.log_a - p.damping_a[:, None] * transform, u)
        v_next = p.log_b - p.damping_b[:, None] * _columns(K, u)
        v = torch.where(active[:, None], v_next, v)
        n_iter += active
    return u, v, n_iter, passed


def symmetric(
    K: Tensor, u: Tensor, p: Problems, rho_a: float, max_iter: int, tol: float
) -> Iterated:
    """f <- (f + T f) / 2 for x = y and a = b, T the f step: one potential, so v = u.

    The plain iteration alternates around the fixed point of such a problem, the average does not
    (Feydy et al., AISTATS 2019, arXiv 1810.08278).
    """
    n_iter = torch.zeros_like(p.live, dtype=torch.int32)
    active, passed = p.live, torch.zeros_like(p.live)
    for k in range(max_iter + 1):
        if _all_done(k, active):
            break
        transform = _rows(K, u)
        if k > 0 and tol > 0:
            reached = active & (_marginal_error(u, transform, p, rho_a) <= tol)
            passed, active = passed | reached, active & ~reached
        if k == max_iter:
            break
        u_next = (u + (p.log_a - p.damping_a[:, None] * transform)) / 2
        u = torch.where(active[:, None], u_next, u)
        n_iter += active
    return u, u, n_iter, passed


def _is_fold(k: int) -> bool:
    """After these iterations the kernels rebuild their matrix, and omega is chosen anew."""
    return k % 16 == 0 or k in (2, 4, 8)


def _next_omega(omega: Tensor, error: Tensor, two_ago: Tensor, marked: Tensor | None) -> Tensor:
    """2 / (1 + sqrt(1 - lambda)) from the rate of the error; 1 where it grew or does not fall."""
    rate = (error / two_ago).sqrt()
    x = rate.clamp(min=1e-6)
    plain_rate = (x + omega - 1).square() / (x * omega * omega)
    best = 2 / (1 + (1 - plain_rate.clamp(max=0.9999)).sqrt())
    keeps = rate < 1
    if marked is not None:
        keeps = keeps & (error <= 1.05 * marked)
    return torch.where(keeps, best, 1.0)


def _relaxed(u: Tensor, plain_u: Tensor, omega: Tensor, log_a: Tensor) -> Tensor:
    """u + log2 of rho^omega, second order around rho = exp2(plain_u - u) = 1; plain far from it."""
    factor = torch.where(log_a == -math.inf, 1.0, (plain_u - u).exp2())
    x, omega = factor - 1, omega[:, None]
    step = u + ((2 + (1 + omega) * x) / (2 + (1 - omega) * x)).log2()
    near = (factor > 0.5) & (factor < 2) & (log_a > -math.inf) & (omega != 1)
    return torch.where(near, step, plain_u)


def relaxed(K: Tensor, v: Tensor, p: Problems, max_iter: int, tol: float) -> Iterated:
    """`plain` for balanced problems with adaptive over-relaxation (csrc/transport/relaxation.h).

    The row pass of an iteration observes the error of the pair before it and is relaxed as that
    pair was; what it observed holds from its column step on. A problem stops only where the last
    column step was plain: otherwise the next one is, and the error is measured again. The column
    step of iteration ``max_iter`` is always plain.
    """
    u = torch.full_like(p.log_a, -math.inf)
    n_iter = torch.zeros_like(p.live, dtype=torch.int32)
    active, passed = p.live, torch.zeros_like(p.live)
    one = torch.ones_like(p.scale)
    omega, used = one, one  # as the errors ask for it; of the last column step
    one_ago, two_ago, marked = torch.zeros_like(one), torch.zeros_like(one), None
    for k in range(max_iter + 1):
        if _all_done(k, active):
            break
        transform = _rows(K, v)
        following = used
        if k > 0:
            error = _marginal_error(u, transform, p, math.inf)
            within = active & (error <= tol) & (tol > 0)
            reached = within & (used == 1)
            passed, active = passed | reached, active & ~reached
            if k >= 4 and _is_fold(k):
                omega, marked = _next_omega(omega, error, two_ago, marked), error
            one_ago, two_ago = error, one_ago
            following = one if k == max_iter - 1 else torch.where(within, 1.0, omega)
        if k == max_iter:
            break
        u_next = _relaxed(u, p.log_a - transform, used, p.log_a)
        u = torch.where(active[:, None], u_next, u)
        used = following
        v_next = _relaxed(v, p.log_b - _columns(K, u), used, p.log_b)
        v = torch.where(active[:, None], v_next, v)
        n_iter += active
    return u, v, n_iter, passed
