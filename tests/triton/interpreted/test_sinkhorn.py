"""Sinkhorn on a cost matrix, every class of problems, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton.interpreted.kit import compare, matrix_problem, results_of, same_bits

INF = math.inf


@pytest.mark.parametrize(
    ("batch", "n", "m", "more"),
    [
        (3, 1, 1, {}),
        (5, 4, 7, {"max_iter": 11}),
        (3, 8, 8, {"max_iter": 1}),
        (3, 9, 17, {"max_iter": 19, "tol": 1e-2}),
        (2, 33, 20, {}),
        (1, 64, 128, {}),
        (1, 127, 65, {"max_iter": 3}),
        (3, 6, 5, {"a": None}),
        (3, 6, 5, {"b": None, "log": True}),
        (3, 6, 5, {"a": None, "b": None, "g0": torch.linspace(-0.2, 0.2, 5)[None]}),
        (3, 6, 5, {"rho_a": 1.0, "rho_b": 0.3, "tol": 1e-2, "max_iter": 30}),
        (3, 6, 5, {"rho_a": 1.0}),
        (3, 6, 5, {"rho_b": 1.0, "log": True, "tol": 1e-2, "max_iter": 20}),
        (3, 8, 8, {"sor": True, "tol": 1e-3, "max_iter": 40}),
        (3, 8, 8, {"sor": True, "log": True, "max_iter": 9}),
    ],
)
def test_registers(batch, n, m, more):
    compare(matrix_problem(batch, n, m, **more))


@pytest.mark.parametrize("one_program", [512, 100])
@pytest.mark.parametrize(
    ("n", "m", "more"),
    [
        (5, 130, {"max_iter": 3}),
        (140, 3, {"tol": 2e-2, "max_iter": 8, "a": None, "g0": torch.zeros(1, 3)}),
        (130, 5, {"rho_a": 0.5, "rho_b": 1.0, "tol": 2e-2, "max_iter": 5}),
        (130, 4, {"sor": True, "tol": 3e-2, "max_iter": 9}),
    ],
)
def test_streaming(n, m, more, one_program, monkeypatch):
    """One program a problem, and one launch a half-step."""
    monkeypatch.setattr("fedkernels.transport.triton.solve.ONE_PROGRAM", one_program)
    compare(matrix_problem(2, n, m, **more))


def test_shared_inputs():
    call = matrix_problem(1, 7, 5, g0=torch.rand(1, 5))
    call |= {"batch": 3, "eps": torch.tensor([0.05, 0.1, 1.0], dtype=torch.float64)}
    compare(call)


def test_one_bad_problem_changes_no_other_bit():
    """NaN, Inf, negative and unequal masses, bad eps, zero masses: statuses, and the neighbours."""
    plain = matrix_problem(10, 6, 5, max_iter=4)
    call = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
    call["cost"][1, 2, 3] = math.nan
    call["cost"][2, 0, 0] = INF
    call["a"][3] *= 1.5
    call["a"][4, 0] = -0.1
    call["b"][5] = 0.0
    call["a"][5] = 0.0
    call["eps"][6] = -1.0
    call["b"][7, 2] = math.nan
    call["a"][8] = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    actual = compare(call)
    assert actual["status"].tolist() == [1, 2, 2, 3, 3, 0, 2, 2, 1, 1]
    alone = results_of(plain)
    for k in (0, 9):
        assert all(same_bits(actual[key][k], alone[key][k]) for key in actual)


def test_a_problem_alone_padded_and_permuted_has_the_same_bits():
    sizes = torch.tensor([[3, 4], [9, 2], [8, 8], [0, 3], [0, 0], [20, 10], [1, 1]])
    call = matrix_problem(7, 20, 10, sizes=sizes, max_iter=9, tol=1e-2)
    call["b"][3, :3] = 0.0
    together = compare(call)
    order = torch.randperm(7)
    turned = {
        k: v[order] if isinstance(v, torch.Tensor) and v.shape[0] == 7 else v
        for k, v in call.items()
    }
    permuted = results_of(turned)
    for key, value in together.items():
        assert same_bits(permuted[key], value[order]), key
    for k, (rows, columns) in enumerate(sizes.tolist()):
        alone = call | {
            "cost": call["cost"][k : k + 1, :rows, :columns].contiguous(),
            "a": call["a"][k : k + 1, :rows].contiguous(),
            "b": call["b"][k : k + 1, :columns].contiguous(),
            "eps": call["eps"][k : k + 1],
            "sizes": None,
            "batch": 1,
        }
        single = results_of(alone)
        for key, value in single.items():
            mine = together[key][k]
            extent = value.shape[1] if value.dim() == 2 else None
            assert same_bits(value[0], mine if extent is None else mine[:extent]), (k, key)


def test_ragged_streaming(monkeypatch):
    monkeypatch.setattr("fedkernels.transport.triton.solve.ONE_PROGRAM", 131)
    sizes = torch.tensor([[3, 4], [130, 2], [135, 3], [135, 0], [2, 3]])
    call = matrix_problem(5, 135, 4, sizes=sizes, max_iter=3)
    compare(call)


def test_small_eps_falls_back_to_the_log_domain():
    """A first window whose factors leave 2^96 (a start far from the solution) is redone."""
    call = matrix_problem(4, 8, 8, max_iter=4)
    call["eps"][:] = 0.002
    call["g0"] = torch.linspace(-1.0, 1.0, 8).repeat(4, 1)
    log = results_of(call | {"log": True})
    absorbed = results_of(call)
    # Rounding of K + u + v at magnitude max C / eps: 8 * 2^-23 * (1 + range / eps) of the mass.
    allowed = 8 * 2.0**-23 * (1 + 2 / 0.002)
    assert (absorbed["r"] - log["r"]).abs().sum(1).max() <= allowed
    assert (absorbed["c"] - log["c"]).abs().sum(1).max() <= allowed


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (0, 200)])
def test_empty(n, m):
    compare(matrix_problem(2, n, m, a=None, b=None))
    compare(matrix_problem(2, n, m, a=torch.zeros(2, n), b=torch.zeros(2, m)))


def test_no_problems():
    found = results_of(matrix_problem(0, 4, 4))
    assert found["value"].shape == (0,)
