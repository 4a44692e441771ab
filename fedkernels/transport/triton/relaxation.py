"""Adaptive over-relaxation of balanced problems: the rule of csrc/transport/relaxation.h."""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import log2_


@triton.jit
def next_omega(k, omega, error, two_ago, marked):
    """omega and marked after the error of iteration k is known; they change at folds from 4 on."""
    fold = (k % 16 == 0) | (k == 4) | (k == 8)
    change = fold & (k >= 4)
    rate = tl.sqrt_rn(error / two_ago)
    x = tl.maximum(rate, 1e-6)
    shifted = x + omega - 1.0
    lam = tl.minimum(shifted * shifted / (x * omega * omega), 0.9999)
    best = 2.0 / (1.0 + tl.sqrt_rn(1.0 - lam))
    grew = (marked >= 0.0) & ~(error <= 1.05 * marked)
    best = tl.where(grew | ~(rate < 1.0), 1.0, best)
    return tl.where(change, best, omega), tl.where(change, error, marked)


@triton.jit
def relaxed_factor(rho, omega):
    """rho^omega to second order around 1; plain far from it."""
    x = rho - 1.0
    omega = tl.zeros_like(rho) + omega
    near = (rho > 0.5) & (rho < 2.0) & (omega != 1.0)
    return tl.where(near, (2.0 + (1.0 + omega) * x) / (2.0 + (1.0 - omega) * x), rho)


@triton.jit
def relaxed_potential(u, plain, mass, omega):
    """u + log2 of the relaxed factor of exp2(plain - u)."""
    positive = mass > 0.0
    before = tl.where(positive & (u > float("-inf")), u, 0.0)
    after = tl.where(positive, plain, 0.0)
    rho = tl.exp2(after - before)
    omega = tl.zeros_like(rho) + omega  # a scalar truth value does not spread in the interpreter
    near = positive & (rho > 0.5) & (rho < 2.0) & (omega != 1.0)
    factor = tl.where(near, relaxed_factor(rho, omega), 1.0)
    return tl.where(near, before + log2_(factor), plain)
