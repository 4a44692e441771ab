"""The operators that PyTorch sees: schemas, fakes, dispatch."""

from __future__ import annotations

import pytest
import torch

from tests.triton.interpreted.kit import DEVICE, matrix_problem, points_problem

OPS = torch.ops.fedkernels


def calls():
    eps = torch.ones(2, dtype=torch.float64)
    cost, x, y = torch.rand(2, 3, 4), torch.rand(2, 3, 2), torch.rand(2, 4, 2)
    u, v = torch.rand(2, 3), torch.rand(2, 4)
    w = torch.rand(2)
    pairs = x, y, None, None
    points, mu, grad = torch.rand(5, 2).bfloat16(), torch.rand(3, 2), torch.rand(5, 3)
    labels, prior, mask = torch.tensor([0, 1, 2, 1, 0]), torch.rand(3), torch.rand(5, 3) < 0.8
    softmax = points, mu, prior, mask
    sides = u, v, u, v
    return {
        "sinkhorn_forward": tuple(matrix_problem(2, 3, 4, max_iter=2).values()),
        "sinkhorn_plan": (cost, eps, None, u, v, w),
        "sinkhorn_apply": (cost, eps, None, u, v, torch.rand(2, 4, 2), False),
        "sinkhorn_points_forward": tuple(points_problem(2, 3, 4, 2, max_iter=1).values()),
        "sinkhorn_points_plan": (x, y, eps, None, 0, u, v, None),
        "sinkhorn_points_apply": (x, y, eps, None, 0, u, v, torch.rand(2, 3, 2), True),
        "sinkhorn_points_backward": (x, y, eps, None, 0, u, v, w, w, u, v),
        "conditional_transport_forward": (*pairs, 0, 0, 1.0),
        "conditional_transport_backward": (*pairs, *sides, *sides, 0, 0, 1.0, 13),
        "prototype_distance": (points, mu, 1),
        "prototype_distance_backward": (points, mu, grad, grad, 1, 3),
        "prototype_assign": (points, mu, mask, 0, 4),
        "prototype_softmax": (*softmax, 0, 1.0, True),
        "prototype_softmax_backward": (*softmax, torch.rand(5), grad, None, prior, 0, 1.0, 5),
        "prototype_cross_entropy": (points, mu, labels, prior, None, None, None, 0, 1.0, -1, 2, 7),
        "class_sum": (points, labels, None, 3),
    }


@pytest.mark.parametrize("name", calls())
def test_opcheck(name):
    arguments = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in calls()[name]]
    op = getattr(OPS, f"{name}_triton").default
    # There is no autograd below the public functions: the Functions stand outside of the ops.
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
