"""gradcheck of everything that grad="implicit" makes differentiable, on the public functions."""

from __future__ import annotations

import pytest
import torch

from fedkernels.transport import sinkhorn, sinkhorn_points
from tests.ops.kit import BACKENDS

pytestmark = pytest.mark.once

OPTIONS = {"grad": "implicit", "tol": 1e-13, "max_iter": 200}


@pytest.mark.parametrize("rho", [None, (0.5, 2.0), (1.0, None)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cost_matrix(backend, rho):
    cost, logits = torch.rand(2, 3, 4).double(), torch.randn(2, 3).double()
    V, eps = torch.rand(2, 4, 2).double(), torch.tensor([0.5, 0.8]).double()

    def call(cost, logits, eps, V):
        # Masses that keep their total, whatever the difference that gradcheck takes.
        result = sinkhorn(cost, logits.softmax(1), eps=eps, rho=rho, backend=backend, **OPTIONS)
        return result.value, result.linear_cost, result.plan(), result.apply(V)

    inputs = [t.requires_grad_() for t in (cost, logits, eps, V)]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_points(metric):
    x, y = (torch.randn(1, n, 2).double().requires_grad_() for n in (3, 4))

    def call(x, y):
        result = sinkhorn_points(x, y, metric=metric, eps=0.5, backend="reference", **OPTIONS)
        return result.value, result.linear_cost, result.plan()

    assert torch.autograd.gradcheck(call, (x, y))
