"""Problems for the tests of the transport reference, and its results by name."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedkernels.transport import reference

CONVERGED, MAX_ITER, NON_FINITE, INFEASIBLE, EMPTY = range(5)


class Solved(NamedTuple):
    value: Tensor
    linear: Tensor
    f: Tensor
    g: Tensor
    u: Tensor
    v: Tensor
    r: Tensor
    c: Tensor
    n_iter: Tensor
    error: Tensor
    status: Tensor


def cost_of(batch, n, m, *, seed=0, dtype=torch.float64) -> Tensor:
    """Squared distances of points in the unit square, (batch, n, m)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, n, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(batch, m, 2, generator=generator, dtype=torch.float64)
    return (x[:, :, None] - y[:, None]).square().sum(-1).to(dtype)


def masses_of(batch, n, *, seed=0, total=1.0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    mass = 0.1 + torch.rand(batch, n, generator=generator, dtype=torch.float64)
    return (total * mass / mass.sum(1, keepdim=True)).to(dtype)


def eps_of(*eps: float) -> Tensor:
    return torch.tensor(eps, dtype=torch.float64)


def solve(
    cost,
    a=None,
    b=None,
    eps=0.1,
    *,
    sizes=None,
    g0=None,
    batch=None,
    rho=(math.inf, math.inf),
    max_iter=5000,
    tol=1e-12,
    log=True,
    sor=False,
) -> Solved:
    eps = eps if isinstance(eps, Tensor) else eps_of(eps)
    sizes = None if sizes is None else torch.tensor(sizes)
    batch = len(cost) if batch is None else batch
    return Solved(
        *reference.sinkhorn_forward(
            cost, a, b, eps, sizes, g0, batch, *rho, max_iter, tol, log, sor
        )
    )


def plan_of(cost, solved: Solved, eps=0.1, sizes=None, scale=None) -> Tensor:
    eps = eps if isinstance(eps, Tensor) else eps_of(eps)
    sizes = None if sizes is None else torch.tensor(sizes)
    return reference.sinkhorn_plan(cost, eps, sizes, solved.u, solved.v, scale)
