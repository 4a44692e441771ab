"""Sinkhorn between points, all metrics and iterations, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import compare, points_problem, results_of, same_bits


@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize(
    ("n", "m", "D", "more"),
    [
        (1, 1, 1, {}),
        (5, 40, 3, {}),
        (17, 9, 33, {"tol": 5e-2, "max_iter": 8}),
        (20, 5, 4, {"rho_a": 1.0, "rho_b": 0.5}),
    ],
)
def test_points(metric, n, m, D, more):
    compare(points_problem(2, n, m, D, metric=metric, **more))


@pytest.mark.parametrize("one_program", [512, 10])
def test_iterations(one_program, monkeypatch):
    """Over-relaxed and symmetric, by one program and by launches."""
    monkeypatch.setattr("fedkernels.transport.triton.solve.ONE_PROGRAM", one_program)
    compare(points_problem(2, 12, 9, 4, sor=True, max_iter=9))
    compare(points_problem(2, 12, 9, 4, sor=True, tol=2e-2, max_iter=20))
    compare(points_problem(2, 12, 12, 4, symmetric=True, tol=1e-2, max_iter=20))
    compare(points_problem(2, 12, 12, 4, symmetric=True, rho_a=0.5, rho_b=0.5))


def test_statuses():
    call = points_problem(5, 4, 6, 3)
    call["x"][1, 0, 0] = math.nan
    call["y"][2, 5, 2] = math.inf
    call["a"][3] = 0.0
    call["b"][3] = 0.0
    assert compare(call)["status"].tolist() == [1, 2, 2, 0, 1]


def test_ragged_problems_are_those_alone():
    sizes = torch.tensor([[40, 3], [5, 7], [0, 2], [33, 7], [1, 1]])
    call = points_problem(5, 40, 7, 3, sizes=sizes, max_iter=2)
    together = compare(call)
    for k, (rows, columns) in enumerate(sizes.tolist()):
        alone = call | {
            "x": call["x"][k : k + 1, :rows].contiguous(),
            "y": call["y"][k : k + 1, :columns].contiguous(),
            "a": call["a"][k : k + 1, :rows].contiguous(),
            "b": call["b"][k : k + 1, :columns].contiguous(),
            "eps": call["eps"][k : k + 1],
            "sizes": None,
            "batch": 1,
        }
        for key, value in results_of(alone).items():
            mine = together[key][k]
            extent = value.shape[1] if value.dim() == 2 else None
            assert same_bits(value[0], mine if extent is None else mine[:extent]), (k, key)


def test_equal_points_have_cost_zero():
    """Far from 0 and equal: an expansion that is not centred would leave 1e-3."""
    x = torch.full((1, 3, 5), 1000.0)
    call = points_problem(1, 3, 3, 5, metric=1, a=None, b=None)
    found = results_of(call | {"x": x, "y": x.clone()})
    assert found["linear"].item() == 0.0
