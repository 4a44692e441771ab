"""Batches in which most or all problems cannot be solved: each still gets its own result."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import ops, reference
from tests.ops.kit import BACKENDS
from tests.ops.transport.problems import NON_FINITE, Solved, cost_of, eps_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("good", [(), (0,), (69,), (20, 40)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_of_bad_problems(backend, good, dtype):
    """More of them in a row than a kernel holds side by side."""
    op = reference if backend == "reference" else ops.primitives(backend)
    cost = cost_of(70, 6, 5, dtype=dtype)
    bad = torch.tensor([k not in good for k in range(70)])
    cost[bad, 0, 0] = math.nan
    args = (None, None, eps_of(0.1), None, None)
    rest = (math.inf, math.inf, 20, 0.0, False, False)
    ours = Solved(*op.sinkhorn_forward(cost, *args, 70, *rest))
    assert torch.equal(ours.status == NON_FINITE, bad)
    for name in ("value", "linear", "error", "f", "g", "u", "v", "r", "c"):
        assert torch.equal(getattr(ours, name).reshape(70, -1).isnan().all(1), bad), name
    assert (ours.n_iter == torch.where(bad, 0, 20)).all()
    for k in good:
        alone = Solved(*op.sinkhorn_forward(cost[k : k + 1].clone(), *args, 1, *rest))
        # The kernels promise the bits; the sums of the reference follow the shape of the batch.
        close = {} if backend == "reference" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours.f[k], alone.f[0], **close)
        torch.testing.assert_close(ours.v[k], alone.v[0], **close)
