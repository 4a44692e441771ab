"""Conditional transport, every cost and logit, forward and backward, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import compare_primitive


def problem(batch, n, m, D, *, p=True, q=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(batch, k, D, generator=generator) / 2 + 0.3 for k in (n, m))
    masses = [torch.rand(batch, k, generator=generator) + 0.1 for k in (n, m)]
    masses = [mass / mass.sum(1, keepdim=True) for mass in masses]
    return [x, y, masses[0] if p else None, masses[1] if q else None]


def both(inputs, cost, logits, temperature=0.7, need=15, grads=None):
    batch, n, m = len(inputs[0]), inputs[0].shape[1], inputs[1].shape[1]
    forward = compare_primitive(
        "conditional_transport_forward", [*inputs, cost, logits, temperature]
    )
    if grads is None:
        grads = [torch.randn(batch, k) for k in (n, m, n, m)]
    arguments = [*inputs, *forward, *grads, cost, logits, temperature, need]
    return compare_primitive("conditional_transport_backward", arguments)


@pytest.mark.parametrize("logits", [0, 1, 2])
@pytest.mark.parametrize("cost", [0, 1])
def test_every_cost_and_logit(cost, logits):
    both(problem(2, 9, 5, 7), cost, logits)


@pytest.mark.parametrize(("n", "m", "D"), [(1, 1, 1), (70, 3, 65), (3, 0, 4), (0, 3, 4), (2, 1, 0)])
def test_sizes(n, m, D):
    both(problem(1, n, m, D, p=False), 1, 0)


def test_zero_vectors_masses_and_silent_rows():
    inputs = problem(2, 5, 6, 4)
    inputs[0][0, 1] = 0.0
    inputs[2][0, 2] = 0.0
    inputs[3][1] = 0.0
    grads = [torch.randn(2, k) for k in (5, 6, 5, 6)]
    grads[0][1, 3] = 0.0
    grads[2][1, 3] = 0.0
    for cost, logits in ((0, 1), (1, 2)):
        both(inputs, cost, logits, grads=grads)


def test_what_is_not_needed_is_empty():
    found = both(problem(1, 4, 3, 2, q=False), 0, 0, need=4)
    assert [g.numel() for g in found] == [0, 0, 4, 0]


def test_nan_in_one_problem_stays_there():
    inputs = problem(2, 4, 5, 3)
    clean = both(inputs, 1, 2, grads=[torch.ones(2, k) for k in (4, 5, 4, 5)])
    inputs[0][1, 0, 0] = math.nan
    found = both(inputs, 1, 2, grads=[torch.ones(2, k) for k in (4, 5, 4, 5)])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(clean, found, strict=True))
