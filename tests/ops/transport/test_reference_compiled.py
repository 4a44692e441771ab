"""The reference under torch.compile: one loop in the graph, with the same early exit."""

from __future__ import annotations

import math

import pytest
import torch

from fedkernels.transport import reference
from tests.ops.transport.problems import cost_of, eps_of

pytestmark = pytest.mark.once


@pytest.mark.parametrize("sor", [False, True])
def test_one_loop_in_the_graph(sor):
    """Unrolled, a thousand iterations would trace for minutes; "eager" runs the traced graph."""
    cost, eps = cost_of(2, 5, 4), eps_of(0.1, 0.05)

    def call(cost):
        rest = (None, None, eps, None, None, 2, math.inf, math.inf, 1000, 1e-6, True, sor)
        return reference.sinkhorn_forward(cost, *rest)

    compiled = torch.compile(call, fullgraph=True, backend="eager")(cost)
    for one, other in zip(compiled, call(cost), strict=True):
        assert torch.equal(one, other)
    assert (compiled[8] < 1000).all()
