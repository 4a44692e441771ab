"""Points that coincide, or nearly: a small distance is as right as a large one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.kit import needs_extension
from tests.ops.transport import dense_points as dense
from tests.ops.transport.problems import eps_of
from tests.ops.transport.test_points_op import CPU, DTYPES, cloud

pytestmark = needs_extension
SIZES = [(37, 2), (37, 70)]  # points, dimensions: below and above a run of the products


def costs(x, y, metric, eps):
    """The costs behind a plan whose potentials are 0; inf where it underflows."""
    zero = torch.zeros(x.shape[:2], dtype=x.dtype)
    plan = CPU.sinkhorn_points_plan(x, y, eps_of(eps), None, metric, zero, zero, None)
    with np.errstate(divide="ignore"):
        return -eps * np.log(dense.wide(plan[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [0, 1])
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_a_point_is_at_distance_zero_from_itself(n, dim, metric, dtype):
    x = cloud(1, n, dim, offset=3.0, dtype=dtype)
    found = costs(x, x.clone(), metric, 1e-6)
    assert (np.diagonal(found) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_small_distances(n, dim, gap, dtype):
    """Centred, each point is rounded to its own size; the root of a rounding is not in it."""
    x = cloud(1, n, dim, dtype=dtype)
    y = (x.double() + gap * cloud(1, n, dim, seed=1).double()).to(dtype)
    found = np.diagonal(costs(x, y, 1, gap))
    exact = np.diagonal(dense.costs(dense.wide(x[0]), dense.wide(y[0]), 1))
    size = float(x.norm(dim=-1).max())
    # The logarithm of the plan is right to 4 roundings of its size (dense exp2, scale, product).
    rounding = torch.finfo(dtype).eps * (2 * size + 4 * gap * (1 + dim**0.5))
    assert np.abs(found - exact).max() <= rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [0, 1])
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_gradients_of_small_distances(n, dim, metric, dtype):
    """All of the plan is on pairs at a distance of 1e-3 of the cloud's size."""
    gap = 1e-3
    x = cloud(1, n, dim, dtype=dtype)
    y = (x.double() + gap * cloud(1, n, dim, seed=1).double()).to(dtype)
    u = torch.zeros(1, n, dtype=dtype)
    one = torch.ones(1, dtype=dtype)
    eps = gap if metric == 1 else gap * gap
    args = (x, y, eps_of(eps), None, metric, u, u)
    plan = dense.wide(CPU.sinkhorn_points_plan(*args, None)[0])
    dx, dy = CPU.sinkhorn_points_backward(*args, one, 0 * one, None, None)
    wide = dense.wide(x[0]), dense.wide(y[0])
    cost = dense.costs(*wide, metric)
    exact_x = (plan[..., None] * dense.cost_gradient(*wide, metric)).sum(1)
    exact_y = (plan.T[..., None] * dense.cost_gradient(*wide[::-1], metric)).sum(1)
    # Both points rounded to their size, over the distance; the plan's own rounding is not in it.
    size = float(x.norm(dim=-1).max())
    share = plan / np.where(cost == 0, 1, cost) if metric == 1 else 2 * plan
    for found, exact, weight in ((dx, exact_x, share), (dy, exact_y, share.T)):
        rounding = 4 * torch.finfo(dtype).eps * size * float(weight.sum(1).max())
        assert np.abs(dense.wide(found[0]) - exact).max() <= rounding
