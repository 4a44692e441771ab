"""Problems without a plan, compiled and reference: what is left of the value, of u and of v."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import ops, reference
from tests.ops.kit import BACKENDS
from tests.ops.transport.problems import (
    CONVERGED,
    EMPTY,
    INFEASIBLE,
    Solved,
    cost_of,
    eps_of,
    masses_of,
)

INF = math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(3, 4), (40, 35)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_mass(backend, n, m, dtype):
    op = reference if backend == "reference" else ops.primitives(backend)
    cost = cost_of(4, n, m, dtype=dtype)
    a, b = masses_of(4, n, dtype=dtype), masses_of(4, m, seed=1, total=2.0, dtype=dtype)
    a[0] = b[0] = a[1] = b[2] = 0
    a[3], b[3] = a[3] * 2, b[3]
    sizes = torch.tensor([[n, m], [n, m], [n, m], [0, 0]])
    for rho, statuses, values in (
        ((INF, INF), [CONVERGED, INFEASIBLE, INFEASIBLE, EMPTY], [0.0, None, None, 0.0]),
        ((0.5, 0.7), [CONVERGED, CONVERGED, CONVERGED, EMPTY], [0.0, 1.4, 0.5, 0.0]),
        ((0.5, INF), [CONVERGED, INFEASIBLE, CONVERGED, EMPTY], [0.0, None, 0.5, 0.0]),
        ((INF, 0.7), [CONVERGED, CONVERGED, INFEASIBLE, EMPTY], [0.0, 1.4, None, 0.0]),
    ):
        args = (cost, a, b, eps_of(0.1), sizes, None, 4, *rho, 20, 1e-5, False, False)
        ours = Solved(*op.sinkhorn_forward(*args))
        assert ours.status.tolist() == statuses
        plan = op.sinkhorn_plan(cost, eps_of(0.1), sizes, ours.u, ours.v, None)
        for k, value in enumerate(values):
            if value is None:
                assert ours.value[k].isnan() and ours.f[k].isnan().all(), (rho, k)
                continue
            assert ours.value[k].item() == pytest.approx(value, rel=1e-6), (rho, k)
            assert (plan[k] == 0).all() and (ours.u[k, : sizes[k, 0]] == -INF).all()
            for name in ("linear", "f", "g", "r", "c", "error", "n_iter"):
                assert (getattr(ours, name)[k] == 0).all(), (rho, k, name)
