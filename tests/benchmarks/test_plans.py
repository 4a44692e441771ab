"""The gates of transport pass what is right, and find out what is slightly wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedkernels._extension import is_built, why_not_built
from fedkernels.testing.check import (
    conditional_within_budget,
    emd_is_optimal,
    iterates_within_budget,
    plan_is_optimal,
    plans,
)

needs_extension = pytest.mark.skipif(not is_built(), reason=f"not built: {why_not_built()}")


def problem(batch: int = 3, n: int = 5, m: int = 7, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, n, m, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(batch, k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    return cost.to(dtype), a.to(dtype), b.to(dtype)


def scaled(monkeypatch: pytest.MonkeyPatch, factor: float, backends: tuple[str, ...]) -> None:
    """`sinkhorn` with the plan's first entry times ``factor`` on some backends."""
    right = plans.sinkhorn

    class Wrong:
        def __init__(self, result) -> None:
            self.result = result

        def __getattr__(self, name: str):
            return getattr(self.result, name)

        def plan(self) -> torch.Tensor:
            plan = self.result.plan()
            plan[:, 0, 0] *= factor
            return plan

    def wrong(*tensors, backend: str, **options):
        result = right(*tensors, backend=backend, **options)
        return Wrong(result) if backend in backends else result

    monkeypatch.setattr(plans, "sinkhorn", wrong)


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_iterates(monkeypatch, factor):
    scaled(monkeypatch, factor, ("auto",))
    for first in (None, 2):
        verdict = iterates_within_budget(*problem(), eps=0.1, max_iter=20, first=first)
        assert verdict.passed == (factor == 1.0), verdict.detail


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_plan_at_a_tolerance(monkeypatch, factor):
    scaled(monkeypatch, factor, ("auto",))
    verdict = plan_is_optimal(*problem(), eps=0.1, max_iter=1000, tol=1e-3)
    assert verdict.passed == (factor == 1.0), verdict.detail


def test_a_plan_that_did_not_converge():
    verdict = plan_is_optimal(*problem(), eps=0.01, max_iter=2, tol=1e-6)
    assert not verdict.passed and verdict.detail == "3 problems did not converge"


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", ["", "value", "f", "plan", "status"])
def test_exact_transport(monkeypatch, dtype, what):
    cost, a, b = problem(dtype=torch.float64)
    right = plans.emd

    def wrong(*tensors):
        result = right(*tensors)
        change = {"status": lambda t: t + 1, "plan": lambda t: t * 1.001}
        change |= dict.fromkeys(("value", "f"), lambda t: t + 1e-3)
        return replace(result, **{what: change[what](getattr(result, what))}) if what else result

    monkeypatch.setattr(plans, "emd", wrong)
    # Marginals of float32 masses agree to float32 alone, and so do the plan's.
    for tensors in ((cost.to(dtype),), (cost, a, b)):
        verdict = emd_is_optimal(*tensors)
        assert verdict.passed == (what == ""), verdict.detail


def test_conditional(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 4, generator=generator) for k in (9, 5))
    assert conditional_within_budget(x, y, temperature=0.5).passed
    right = plans.conditional_transport

    def wrong(*points, backend: str, **options):
        result = right(*points, backend=backend, **options)
        return replace(result, value=result.value * 1.001) if backend != "reference" else result

    monkeypatch.setattr(plans, "conditional_transport", wrong)
    backend = "cpu" if is_built() else "reference"
    assert conditional_within_budget(x, y, temperature=0.5).passed == (backend == "reference")


def test_every_case_of_check_kernels_passes():
    rows = [row for row in plans.check(torch.device("cpu")) if row.status != "skipped"]
    assert [str(row) for row in rows if not row.passed] == []
    backends = {(row.op, row.backend) for row in rows}
    assert ("conditional_transport", "reference") in backends
    assert (("emd", "cpu") in backends) == is_built()
