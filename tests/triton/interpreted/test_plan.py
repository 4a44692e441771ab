"""The plan, its products and the gradients to points, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import (
    compare_primitive,
    matrix_problem,
    points_problem,
    results_of,
)

SIZES = torch.tensor([[5, 7], [20, 3], [0, 4]])


def solved(call):
    found = results_of(call)
    return found["u"], found["v"]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (20, 140)])
def test_plan(n, m):
    call = matrix_problem(3, n, m, max_iter=2)
    u, v = solved(call)
    compare_primitive("sinkhorn_plan", (call["cost"], call["eps"], None, u, v, None))
    scale = torch.tensor([2.0, 0.0, -0.5])
    u[1] = math.nan
    (plan,) = compare_primitive("sinkhorn_plan", (call["cost"], call["eps"], None, u, v, scale))
    assert (plan[1] == 0).all()


def test_plan_of_ragged_problems():
    call = matrix_problem(3, 20, 7, sizes=SIZES, max_iter=2)
    u, v = solved(call)
    (plan,) = compare_primitive("sinkhorn_plan", (call["cost"], call["eps"], SIZES, u, v, None))
    assert (plan[0, 5:] == 0).all() and (plan[1, :, 3:] == 0).all()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("width", [0, 1, 5, 70])
def test_apply(width, transpose):
    call = matrix_problem(2, 17, 70, max_iter=2)
    u, v = solved(call)
    V = torch.randn(2, 17 if transpose else 70, width)
    compare_primitive("sinkhorn_apply", (call["cost"], call["eps"], None, u, v, V, transpose))


@pytest.mark.parametrize("transpose", [False, True])
def test_apply_of_ragged_problems(transpose):
    call = matrix_problem(3, 20, 7, sizes=SIZES, max_iter=2)
    u, v = solved(call)
    V = torch.randn(3, 20 if transpose else 7, 3)
    V[torch.arange(V.shape[1]) >= SIZES[:, 0 if transpose else 1, None]] = math.nan
    compare_primitive("sinkhorn_apply", (call["cost"], call["eps"], SIZES, u, v, V, transpose))


@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("sizes", [None, SIZES])
def test_from_points(metric, sizes):
    call = points_problem(3, 20, 7, 5, metric=metric, sizes=sizes, max_iter=2)
    if metric == 2:
        call["x"][0, 1] = 0.0
    u, v = solved(call)
    first = call["x"], call["y"], call["eps"], sizes, metric, u, v
    compare_primitive("sinkhorn_points_plan", (*first, torch.tensor([1.0, 2.0, 0.0])))
    for transpose in (False, True):
        V = torch.randn(3, 20 if transpose else 7, 2)
        compare_primitive("sinkhorn_points_apply", (*first, V, transpose))
    w0, w1 = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.0])
    compare_primitive("sinkhorn_points_backward", (*first, w0, w1, None, None))
    alpha, beta = torch.randn(3, 20), torch.randn(3, 7)
    alpha[1] = 0.0
    compare_primitive("sinkhorn_points_backward", (*first, w0, w1, alpha, beta))


def test_a_problem_without_weights_gets_zeros():
    call = points_problem(2, 5, 6, 3, max_iter=2)
    u, v = solved(call)
    call["x"][1] = math.nan
    u[1] = math.nan
    first = call["x"], call["y"], call["eps"], None, 0, u, v
    w = torch.tensor([1.0, 0.0])
    dx, dy = compare_primitive("sinkhorn_points_backward", (*first, w, w, None, None))
    assert (dx[1] == 0).all() and (dy[1] == 0).all()


def test_shared_points_and_many_features():
    call = points_problem(1, 6, 70, 130, max_iter=2)
    call["batch"] = 2
    call["eps"] = torch.tensor([0.1, 0.5], dtype=torch.float64)
    u, v = solved(call)
    first = call["x"], call["y"], call["eps"], None, 0, u, v
    w = torch.tensor([1.0, 2.0])
    dx, _ = compare_primitive("sinkhorn_points_backward", (*first, w, 0 * w, None, None))
    assert dx.shape == (2, 6, 130)
