"""10,000 random problems on the CPU kernel: what holds whatever comes in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkernels import sinkhorn
from tests.ops.kit import needs_extension
from tests.ops.transport.calls import CONVERGED, EMPTY, INFEASIBLE, MAX_ITER, NON_FINITE

PROBLEMS, BATCHES = 100, 100


def damaged(cost, a, b, eps, generator):
    """Some problems lose their mass, their sense, or get extreme numbers."""

    def some(share):
        return torch.rand(PROBLEMS, generator=generator) < share

    n, m = cost.shape[1:]
    if n and m:
        cost[some(0.04), 0, m // 2] = torch.nan
        cost[some(0.04), n // 2, 0] = torch.inf
        cost[some(0.04)] *= 1e30
        a[some(0.2), 0] = 0.0
        b[some(0.2), -1] = 0.0
        a[some(0.03)] = 0.0
        a[some(0.03)] *= -1.0
        a[some(0.03)] *= 1e-30
        eps[some(0.1)] = 1e-3
    return cost, a, b, eps


@needs_extension
@settings(
    max_examples=BATCHES, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 40),
    m=st.integers(0, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    rho=st.sampled_from([None, 0.1, 10.0, (1.0, None)]),
    mode=st.sampled_from(["auto", "log"]),
    max_iter=st.integers(1, 40),
    tol=st.sampled_from([0.0, 1e-6, 1e-2]),
    ragged=st.booleans(),
)
def test_every_problem_ends_with_a_status_that_is_true(
    seed, n, m, dtype, rho, mode, max_iter, tol, ragged
):
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(PROBLEMS, n, m, generator=generator)
    a, b = (torch.rand(PROBLEMS, size, generator=generator) + 1e-3 for size in (n, m))
    sizes = None
    if ragged:
        limits = torch.tensor([n + 1, m + 1])
        sizes = (torch.rand(PROBLEMS, 2, generator=generator) * limits).long()
        a = a * (torch.arange(n) < sizes[:, :1])
        b = b * (torch.arange(m) < sizes[:, 1:])
    a, b = (t / t.sum(1, keepdim=True).clamp(min=1e-30) for t in (a, b))
    eps = torch.full((PROBLEMS,), 0.05)
    cost, a, b, eps = damaged(cost, a, b, eps, generator)
    leaf = cost.to(dtype).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = sinkhorn(
        leaf, a.to(wide), b.to(wide), eps=eps, rho=rho, mode=mode, max_iter=max_iter, tol=tol,
        sizes=sizes, backend="cpu",
    )  # fmt: skip
    status, value = found.status, found.value.detach()
    bad = (status == NON_FINITE) | (status == INFEASIBLE)
    assert (status <= EMPTY).all() and (found.n_iter <= max_iter).all()
    assert value[bad].isnan().all() and value[~bad].isfinite().all()
    assert (found.n_iter[bad | (status == EMPTY)] == 0).all()
    # Short of max_iter only where the plan that is returned misses what the iteration saw.
    short = (status == MAX_ITER) & (found.n_iter < max_iter)
    assert (found.marginal_error[short] > tol).all()
    # Costs of 1e30 round the exponents of the plan by more than they are.
    tame = ~bad & (cost.nan_to_num(0, 0, 0).flatten(1).abs().sum(1) < 1e6)
    plan = found.plan()
    assert (plan[tame] >= 0).all() and plan[tame].isfinite().all()
    for potential in (found.f, found.g):
        assert potential[~bad].isfinite().all()
    (grad,) = torch.autograd.grad(torch.nan_to_num(value).sum() + found.value[~bad].sum(), leaf)
    assert grad[tame].isfinite().all() and (grad[bad] == 0).all()
    if tol > 0 and rho is None:
        # CONVERGED promises tol and rounding, of the plan that is returned (README.md, statuses).
        error = (plan.double().sum(2) - a.to(wide)).abs().sum(1)
        done = (status == CONVERGED) & tame
        rounding = 1e-12 if wide == torch.float64 else 3.6e-5
        assert (error[done] <= 1.01 * tol + rounding).all()


@needs_extension
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_eps_of_one_problem_where_contents_are_not_looked_at(bad):
    """Compiled: nothing raises, the problem's status says it."""
    torch._dynamo.reset()
    cost, eps = torch.rand(3, 4, 4), torch.tensor([0.1, bad, 0.1])
    found = torch.compile(
        lambda c, e: sinkhorn(c, eps=e, backend="cpu"), fullgraph=True, backend="aot_eager"
    )(cost, eps)
    assert found.status.tolist() == [CONVERGED, NON_FINITE, CONVERGED]
    assert found.value.isnan().tolist() == [False, True, False]
    torch._dynamo.reset()
