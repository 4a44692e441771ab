"""What the results mean: leading dimensions, statuses, warm starts, conventions, half inputs."""

from __future__ import annotations

import warnings

import pytest
import torch

from fedkernels import sinkhorn, sinkhorn_divergence, sinkhorn_points
from fedkernels.transport import SinkhornResult, TransportStatus
from tests.ops.kit import CPU, assert_same_bits
from tests.ops.transport.calls import (
    BACKENDS,
    CONVERGED,
    EMPTY,
    F64,
    FIELDS,
    INFEASIBLE,
    MAX_ITER,
    NON_FINITE,
    everything,
    masses,
    uniform,
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_problem_has_no_leading_dimension(backend):
    cost, a, b = uniform(5, 4), masses(1, 5)[0], masses(1, 4)[0]
    one = sinkhorn(cost, a, b, eps=0.1, backend=backend)
    many = sinkhorn(cost[None], a[None], b, eps=0.1, backend=backend)
    assert one.value.shape == () and one.f.shape == (5,) and one.plan().shape == (5, 4)
    assert one.apply(torch.ones(4, 2)).shape == (5, 2)
    assert isinstance(one, SinkhornResult) and "(5, 4)" in repr(one)
    assert_same_bits({k: t[None] for k, t in everything(one).items()}, everything(many))
    # The cost is shared where a, b, eps or sizes has a B.
    for more in (
        {"a": masses(3, 5)},
        {"b": masses(3, 4)},
        {"eps": torch.full((3,), 0.1)},
        {"sizes": torch.tensor([[5, 4]] * 3)},
    ):
        found = sinkhorn(cost, **{"eps": 0.1, **more}, backend=backend)
        assert found.value.shape == (3,) and found.plan().shape == (3, 5, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_give_float32_results_and_half_gradients(dtype, backend):
    cost = uniform(2, 5, 4, dtype=dtype).requires_grad_()
    found = sinkhorn(cost, eps=0.2, grad="implicit", backend=backend)
    wide = sinkhorn(cost.detach().float(), eps=0.2, backend=backend)
    assert all(getattr(found, k).dtype == getattr(wide, k).dtype for k in FIELDS)
    assert_same_bits(everything(found), everything(wide))
    (found.value + found.linear_cost).sum().backward()
    assert cost.grad.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_statuses(backend):
    cost = uniform(6, 4, 4)
    cost[1, 0, 0] = torch.nan
    a = masses(6, 4)
    a[2, 0] = -0.1
    a[3] *= 2
    a[5] = 0.0
    b = masses(6, 4, seed=1)
    b[5] = 0.0
    found = sinkhorn(cost, a, b, eps=0.05, max_iter=3, tol=1e-9, backend=backend)
    expected = [MAX_ITER, NON_FINITE, INFEASIBLE, INFEASIBLE, MAX_ITER, CONVERGED]
    assert found.status.tolist() == expected and found.status.dtype == torch.uint8
    assert found.value[5] == 0 and not found.plan()[5].any() and not found.f[5].any()
    assert TransportStatus(int(found.status[1])) is TransportStatus.NON_FINITE
    empty = sinkhorn(torch.zeros(2, 0, 3), b=torch.zeros(2, 3), eps=0.1, backend=backend)
    assert empty.status.tolist() == [EMPTY] * 2 and not empty.value.any()
    assert sinkhorn(torch.zeros(2, 0, 3), eps=0.1, backend=backend).status.tolist() == [3, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strict(backend):
    cost = uniform(3, 4, 4)
    with pytest.warns(RuntimeWarning, match="3 of 3 problems reached max_iter"):
        sinkhorn(cost, eps=0.01, max_iter=2, strict=True, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn(cost, eps=0.5, strict=True, backend=backend)
        sinkhorn(cost, eps=0.01, max_iter=2, backend=backend)
    cost[1] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 3 problems .* problem 1 is NON_FINITE"):
        sinkhorn(cost, eps=0.1, strict=True, backend=backend)
    x = uniform(2, 4, 2)
    x[0, 0, 0] = torch.nan
    for function in (sinkhorn_points, sinkhorn_divergence):
        with pytest.raises(ValueError, match="1 of 2 problems"):
            function(x, uniform(4, 2), eps=0.1, strict=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_warm_start_ends_at_once(backend):
    cost, a = uniform(3, 6, 5, dtype=F64), masses(3, 6, dtype=F64)
    options = {"eps": 0.05, "tol": 1e-8, "solver": "sinkhorn", "backend": backend}
    cold = sinkhorn(cost, a, **options)
    assert (cold.n_iter > 5).all()
    for init in (cold, (cold.f, cold.g), [cold.f, cold.g]):
        warm = sinkhorn(cost, a, init=init, **options)
        assert (warm.n_iter <= 2).all()
        # Both are within tol of the optimum: the values differ by its second order.
        torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_entropy_convention(backend):
    """value is <P, C> + eps sum P log P; plan and potentials are those of "kl"."""
    cost, a, b = uniform(3, 6, 5, dtype=F64), masses(3, 6, dtype=F64), masses(3, 5, dtype=F64)
    options = {"eps": 0.2, "tol": 1e-12, "solver": "sinkhorn", "backend": backend}
    kl = sinkhorn(cost, a, b, **options)
    entropy = sinkhorn(cost, a, b, reg_type="entropy", **options)
    P = entropy.plan()
    torch.testing.assert_close(P, kl.plan(), rtol=0, atol=1e-10)
    primal = (P * cost).sum((1, 2)) + 0.2 * (P * P.log()).sum((1, 2))
    torch.testing.assert_close(entropy.value, primal, rtol=0, atol=1e-10)
    # One iteration from exp(-C / eps) alone: POT's first iterate, not that of g = 0.
    first = sinkhorn(cost, a, b, reg_type="entropy", **{**options, "tol": 0.0, "max_iter": 1})
    K = (-cost / 0.2).exp()
    p = a / K.sum(2)
    q = b / torch.einsum("bij,bi->bj", K, p)
    torch.testing.assert_close(first.plan(), p[:, :, None] * K * q[:, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["auto", "sor", "sinkhorn"])
def test_solvers_reach_the_tolerance(solver, backend):
    cost = uniform(40, 12, 9, dtype=F64)
    exact = sinkhorn(cost, eps=0.05, tol=1e-12, max_iter=20000, solver="sinkhorn", backend=backend)
    found = sinkhorn(cost, eps=0.05, tol=1e-7, max_iter=20000, solver=solver, backend=backend)
    assert (found.status == CONVERGED).all() and (found.marginal_error <= 1.01e-7).all()
    # The dual value errs by no more than the marginal error times the range of the potentials.
    spread = (exact.f.amax(1) - exact.f.amin(1)).max().item()
    torch.testing.assert_close(found.value, exact.value, rtol=0, atol=1e-7 * (1 + spread))
    if solver != "sinkhorn":
        plain = sinkhorn(
            cost, eps=0.05, tol=1e-7, max_iter=20000, solver="sinkhorn", backend=backend
        )
        assert found.n_iter.float().mean() < 0.7 * plain.n_iter.float().mean()


@pytest.mark.parametrize("backend", [CPU])
def test_a_divergence_is_zero_for_equal_clouds_and_positive_otherwise(backend):
    x, y = uniform(4, 20, 3, dtype=F64), uniform(4, 15, 3, dtype=F64, seed=1)
    options = {"eps": 0.1, "tol": 1e-10, "backend": backend}
    for rho in (None, 0.5):
        same = sinkhorn_divergence(x, x, rho=rho, **options)
        assert (same.value.abs() < 1e-9).all() and (same.status == CONVERGED).all()
        assert (sinkhorn_divergence(x, y, rho=rho, **options).value > 1e-4).all()
    order = torch.randperm(20)
    assert (sinkhorn_divergence(x, x[:, order], **options).value.abs() < 1e-9).all()
    one = sinkhorn_divergence(x[0], y[0], **options)
    assert one.value.shape == () and one.status.shape == ()
    part = sinkhorn_divergence(
        x, y, sizes=torch.tensor([[20, 15], [7, 9], [1, 1], [3, 15]]), **options
    )
    cut = sinkhorn_divergence(x[1:2, :7], y[1:2, :9], **options)
    assert torch.equal(part.value[1:2], cut.value)


@pytest.mark.parametrize("backend", [CPU])
def test_points_agree_with_their_matrix(backend):
    x, y = uniform(3, 7, 4, dtype=F64), uniform(3, 9, 4, dtype=F64, seed=1)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    options = {"eps": 0.2, "max_iter": 30, "tol": 0.0, "backend": backend}
    matrix, points = sinkhorn(cost, **options), sinkhorn_points(x, y, **options)
    for name in ("value", "linear_cost", "f", "g"):
        # 30 iterations of sums over 9 terms of size 1, in another order.
        torch.testing.assert_close(
            getattr(matrix, name), getattr(points, name), rtol=0, atol=300 * 2**-52
        )
    torch.testing.assert_close(matrix.plan(), points.plan(), rtol=1e-12, atol=1e-15)
