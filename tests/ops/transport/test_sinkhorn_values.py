"""Every named case within the error budget: every backend and dtype, forward and gradients."""

from __future__ import annotations

import pytest
import torch

from fedkernels.testing.check import transport
from fedkernels.testing.transport_cases import (
    SINKHORN_CASES,
    SINKHORN_POINTS_CASES,
    sinkhorn_inputs,
    sinkhorn_points_inputs,
)
from fedkernels.transport import sinkhorn, sinkhorn_divergence, sinkhorn_points
from tests.ops.kit import needs_extension

CPU = torch.device("cpu")


def assert_within(function, case, inputs) -> None:
    rows = list(transport._over_backends(function, case, inputs, CPU))
    assert {row.backend for row in rows if row.passed} >= {"cpu", "reference"}, rows
    assert not [str(row) for row in rows if row.status == "failed"]


def of(cases):
    return [
        pytest.param(case, dtype, id=f"{case.name}-{str(dtype).removeprefix('torch.')}")
        for case in cases
        for dtype in transport._dtypes(case.name)
    ]


@needs_extension
@pytest.mark.parametrize(("case", "dtype"), of(SINKHORN_CASES))
def test_cost_matrices(case, dtype):
    assert_within(sinkhorn, case.name, sinkhorn_inputs(case, dtype=dtype))


@needs_extension
@pytest.mark.parametrize(("case", "dtype"), of(SINKHORN_POINTS_CASES))
def test_points(case, dtype):
    assert_within(sinkhorn_points, case.name, sinkhorn_points_inputs(case, dtype=dtype))


@needs_extension
@pytest.mark.parametrize(
    ("case", "dtype"), of([c for c in SINKHORN_POINTS_CASES if not isinstance(c.rho, tuple)])
)
def test_divergence(case, dtype):
    assert_within(sinkhorn_divergence, case.name, sinkhorn_points_inputs(case, dtype=dtype))


@needs_extension
def test_a_wrong_plan_and_a_wrong_gradient_are_found(monkeypatch):
    from fedkernels.transport import ops

    good = ops._COMPILED.sinkhorn_plan
    inputs = sinkhorn_inputs(SINKHORN_CASES[0])
    assert transport.sinkhorn_within_budget(sinkhorn, inputs, backend="cpu").passed
    monkeypatch.setattr(ops._COMPILED, "sinkhorn_plan", lambda *args: good(*args) * 1.00001)
    found = transport.sinkhorn_within_budget(sinkhorn, inputs, backend="cpu")
    assert not found.passed and found.used > 5
