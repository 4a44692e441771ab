"""The three iterations: plain, over-relaxed, and the averaged one of a symmetric problem.

Each runs B problems at once and returns (u, v, n_iter, passed). A problem that has passed the stop
test, or never was live, keeps its bits: `active` masks what is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedkernels.transport.reference.problem import Problems

Iterated = tuple[Tensor, Tensor, Tensor, Tensor]

# How often the CPU looks whether every problem is done; a GPU never looks, it would have to wait.
_LOOK = 4

# The number of the step: an int, or where the loop is compiled a tensor ().
Count = int | Tensor
State = tuple[Tensor, ...]


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


def _repeat(step: Callable[..., State], state: State, max_iter: int) -> State:
    """state <- step(k, *state) for k = 0 ... max_iter, while an element of state[0] is true.

    Compiled, it is one loop in the graph: unrolled, a thousand iterations would never compile.
    """
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.while_loop import while_loop

        start = torch.zeros((), dtype=torch.int64, device=state[0].device)
        return while_loop(
            lambda k, active, *rest: (k <= max_iter) & active.any(),
            lambda k, *inner: (k + 1, *step(k, *inner)),
            (start, *state),
        )[1:]
    looks = state[0].device.type == "cpu"
    for k in range(max_iter + 1):
        if looks and k % _LOOK == 0 and not bool(state[0].any()):
            break
        state = step(k, *state)
    return state


def _choose(condition: bool | Tensor, yes: Tensor, no: Tensor) -> Tensor:
    if isinstance(condition, bool):
        return yes if condition else no
    return torch.where(condition, yes, no)


def _rows(K: Tensor, v: Tensor) -> Tensor:
    return log2_sum_exp2(K + v[:, None, :], 2)


def _columns(K: Tensor, u: Tensor) -> Tensor:
    return log2_sum_exp2(K + u[:, :, None], 1)


def plain(K: Tensor, v: Tensor, p: Problems, rho_a: float, max_iter: int, tol: float) -> Iterated:
    """The f step, then the g step; the row pass of an iteration measures the pair before it."""

    def step(
        k: Count, active: Tensor, passed: Tensor, n_iter: Tensor, u: Tensor, v: Tensor
    ) -> State:
        transform = _rows(K, v)
        if tol > 0:
            error = _marginal_error(u, transform, p, rho_a)
            reached = active & (error <= tol) & (k > 0)
            passed, active = passed | reached, active & ~reached
        moving = active & (k < max_iter)  # the last pass only measures
        u = torch.where(moving[:, None], p.log_a - p.damping_a[:, None] * transform, u)
        v_next = p.log_b - p.damping_b[:, None] * _columns(K, u)
        v = torch.where(moving[:, None], v_next, v)
        return active, passed, n_iter + moving, u, v

    _, passed, n_iter, u, v = _repeat(
        step, (*_start(p), torch.full_like(p.log_a, -math.inf), v), max_iter
    )
    return u, v, n_iter, passed


def symmetric(
    K: Tensor, u: Tensor, p: Problems, rho_a: float, max_iter: int, tol: float
) -> Iterated:
    """f <- (f + T f) / 2 for x = y and a = b, T the f step: one potential, so v = u.

    The plain iteration alternates around the fixed point of such a problem, the average does not
    (Feydy et al., AISTATS 2019, arXiv 1810.08278).
    """

    def step(k: Count, active: Tensor, passed: Tensor, n_iter: Tensor, u: Tensor) -> State:
        transform = _rows(K, u)
        if tol > 0:
            error = _marginal_error(u, transform, p, rho_a)
            reached = active & (error <= tol) & (k > 0)
            passed, active = passed | reached, active & ~reached
        moving = active & (k < max_iter)
        u_next = (u + (p.log_a - p.damping_a[:, None] * transform)) / 2
        return active, passed, n_iter + moving, torch.where(moving[:, None], u_next, u)

    _, passed, n_iter, u = _repeat(step, (*_start(p), u), max_iter)
    return u, u.clone(), n_iter, passed


def _start(p: Problems) -> tuple[Tensor, Tensor, Tensor]:
    """active, passed, n_iter before the first iteration."""
    return p.live.clone(), torch.zeros_like(p.live), torch.zeros_like(p.live, dtype=torch.int32)


def _is_fold(k: Count) -> bool | Tensor:
    """After these iterations, from the fourth, omega is chosen anew (the kernels fold there)."""
    return (k == 4) | (k == 8) | ((k % 16 == 0) & (k > 0))


def _next_omega(omega: Tensor, error: Tensor, two_ago: Tensor, marked: Tensor) -> Tensor:
    """2 / (1 + sqrt(1 - lambda)) from the rate of the error; 1 where it grew or does not fall."""
    rate = (error / two_ago).sqrt()
    x = rate.clamp(min=1e-6)
    plain_rate = (x + omega - 1).square() / (x * omega * omega)
    best = 2 / (1 + (1 - plain_rate.clamp(max=0.9999)).sqrt())
    return torch.where((rate < 1) & (error <= 1.05 * marked), best, 1.0)


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
    one = torch.ones_like(p.scale)

    # omega: as the errors ask for it; used: of the last column step; marked: error at a change.
    def step(
        k: Count, active: Tensor, passed: Tensor, n_iter: Tensor, u: Tensor, v: Tensor,
        omega: Tensor, used: Tensor, one_ago: Tensor, two_ago: Tensor, marked: Tensor,
    ) -> State:  # fmt: skip
        transform = _rows(K, v)
        error = _marginal_error(u, transform, p, math.inf)
        within = active & (error <= tol) & (k > 0) & (tol > 0)
        reached = within & (used == 1)
        passed, active = passed | reached, active & ~reached
        fold = _is_fold(k)
        omega = _choose(fold, _next_omega(omega, error, two_ago, marked), omega)
        marked = _choose(fold, error, marked)
        following = torch.where(within, 1.0, omega)
        following = _choose(k == max_iter - 1, one, _choose(k == 0, used, following))

        moving = active & (k < max_iter)
        u_next = _relaxed(u, p.log_a - transform, used, p.log_a)
        u = torch.where(moving[:, None], u_next, u)
        v_next = _relaxed(v, p.log_b - _columns(K, u), following, p.log_b)
        v = torch.where(moving[:, None], v_next, v)
        rest = (omega.clone(), following.clone(), error, one_ago.clone(), marked.clone())
        return active, passed, n_iter + moving, u, v, *rest

    pair = (torch.full_like(p.log_a, -math.inf), v)
    history = (one.clone(), one.clone(), 0 * one, 0 * one, torch.full_like(one, math.inf))
    _, passed, n_iter, u, v, *_ = _repeat(step, (*_start(p), *pair, *history), max_iter)
    return u, v, n_iter, passed
