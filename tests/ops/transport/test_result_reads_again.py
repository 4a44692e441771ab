"""What a result reads later, and what its status promises at the edges of a dtype."""

from __future__ import annotations

import warnings

import pytest
import torch

from fedkernels import sinkhorn, sinkhorn_points
from fedkernels.transport import TransportStatus

pytestmark = pytest.mark.once
BACKENDS = ("cpu", "reference")


def test_a_cost_that_was_changed_is_not_read_again():
    cost = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    result = sinkhorn(cost, eps=0.1, backend="reference")
    before = result.plan()
    cost.zero_()
    for method in (result.plan, lambda: result.apply(torch.eye(4))):
        with pytest.raises(RuntimeError, match="changed in place since"):
            method()
    assert torch.isclose(before.sum(), torch.tensor(1.0), atol=1e-5)


def test_points_that_were_changed_are_not_read_again():
    x = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    result = sinkhorn_points(x, x + 1.0, eps=0.5, backend="reference")
    x += 1.0
    with pytest.raises(RuntimeError, match="changed in place since"):
        result.plan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_beyond_the_dtype_is_no_result(backend):
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    result = sinkhorn(cost, torch.full((8,), 1e20), eps=0.1, backend=backend)
    assert result.status == TransportStatus.NON_FINITE
    assert result.value.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [1e-6, 1e-7, 1e-10])
def test_converged_is_true_where_eps_is_below_the_rounding_of_the_cost(backend, eps):
    cost = torch.rand(64, 8, 8, generator=torch.Generator().manual_seed(1))
    result = sinkhorn(cost, eps=eps, max_iter=100, backend=backend)
    converged = result.status == TransportStatus.CONVERGED
    assert bool((result.marginal_error[converged] <= 1e-5 + 3.5e-5).all())


def test_strict_does_not_complain_of_iterations_that_were_asked_for():
    cost = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn(cost, eps=0.1, tol=0.0, max_iter=5, strict=True, backend="reference")
