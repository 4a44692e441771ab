"""The public functions with backend="triton": values and gradients, against backend="reference"."""

from __future__ import annotations

import pytest
import torch

import fedkernels
from fedkernels import prototype
from fedkernels.testing import assert_within_budget
from tests.triton.interpreted.kit import DEVICE

POINTS = {"eps": 0.3, "max_iter": 3, "tol": 0.0, "solver": "sinkhorn"}


def matrices():
    return [torch.rand(2, 4, 3), torch.rand(2, 4).softmax(1), torch.rand(2, 3).softmax(1)]


def clouds():
    return [torch.randn(2, 4, 3), torch.randn(2, 5, 3)]


def prototypes():
    return [torch.randn(7, 3), torch.randn(5, 3)]


LABELS = torch.tensor([0, 4, 2, 2, 1, 0, 3])


def prototype_loss(x, mu, backend):
    labels = LABELS.to(x.device)
    distance = prototype.prototype_distance(x, mu, metric="euclidean", backend=backend)
    nearest = prototype.prototype_assign(x, mu, k=2, backend=backend).distance
    softmax = prototype.prototype_softmax(x, mu, backend=backend)
    loss = prototype.prototype_cross_entropy(x, mu, labels, backend=backend)
    mean = prototype.class_mean(x, labels, 5, backend=backend).mean
    return loss + sum((one * one).sum() for one in (distance, nearest, softmax.prob, mean))


CALLS = {
    "value": (matrices, lambda c, a, b, **k: fedkernels.sinkhorn(c, a, b, **POINTS, **k).value),
    "linear_cost": (
        matrices,
        lambda c, a, b, **k: (
            fedkernels.sinkhorn(c, a, b, grad="implicit", **POINTS, **k).linear_cost
        ),
    ),
    "points": (clouds, lambda x, y, **k: fedkernels.sinkhorn_points(x, y, **POINTS, **k).value),
    "prototypes": (prototypes, prototype_loss),
    "conditional": (clouds, lambda x, y, **k: fedkernels.conditional_transport(x, y, **k).value),
}


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients(name):
    make, function = CALLS[name]
    tensors = make()

    def outcome(backend: str, dtype: torch.dtype, device: str):
        leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
        value = function(*leaves, backend=backend)
        gradients = torch.autograd.grad(value.sum(), leaves)
        return [value.detach().cpu(), *(g.cpu() for g in gradients)]

    actual = outcome("triton", torch.float32, DEVICE)
    base = outcome("reference", torch.float32, "cpu")
    exact = outcome("reference", torch.float64, "cpu")
    for k, (got, narrow, true) in enumerate(zip(actual, base, exact, strict=True)):
        # Gradients of the masses have a mean of 0 and rows that are nearly 0: as one row.
        assert_within_budget(got.flatten(), narrow.flatten(), true.flatten(), name=f"{name}[{k}]")
