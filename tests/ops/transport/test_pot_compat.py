"""POT's functions on our kernels, against POT itself: arguments, iterates, results, gradients."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch

from fedkernels.transport import pot_compat as ours
from fedkernels.transport.pot_compat import batch as batch_module

pytestmark = pytest.mark.once

ot = pytest.importorskip("ot")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def masses(*shape, seed=1):
    mass = drawn(*shape, seed=seed) + 0.1
    return mass / mass.sum(-1, keepdims=True)


def problem(batch=5, n=10, m=15):
    return drawn(batch, n, m), masses(batch, n), masses(batch, m, seed=2)


def close(actual, expected, tolerance=1e-12):
    """Float64 on both sides: the same iterates by two orders of summation."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


# What POT's documentation shows, in other words.


def test_documented_distances():
    x, y = drawn(5, 10, 3), drawn(5, 15, 3, seed=3)
    M = ours.dist_batch(x, y, metric="euclidean")
    assert M.shape == (5, 10, 15)
    close(M, ot.batch.dist_batch(x, y, metric="euclidean"))


def test_documented_batch_of_clouds():
    x, y = drawn(5, 10, 3), drawn(5, 15, 3, seed=3)
    M = ours.dist_batch(x, y, metric="euclidean")
    exact, theirs = ours.solve_batch(M), ot.batch.solve_batch(M)  # POT's own proximal method
    close(exact.plan, theirs.plan, 0)
    entropic = ours.solve_batch(M, 0.1, method="log_sinkhorn")
    theirs = ot.batch.solve_batch(M, 0.1, method="log_sinkhorn")
    assert entropic.plan.shape == (5, 10, 15) and entropic.value.shape == (5,)
    # Both stop somewhere below an L1 error of rows of 1e-5 (POT: L2); columns are exact.
    assert np.abs(entropic.marginal_a - 1 / 10).sum(1).max() <= 1e-5
    close(entropic.marginal_b, np.full((5, 15), 1 / 15), 1e-15)
    close(entropic.plan, theirs.plan, 1e-4)
    close(entropic.value, theirs.value, 1e-4)


def test_documented_exact_distance():
    assert ours.emd2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]]) == 0.0


def test_documented_sinkhorn():
    args = ([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1)
    plan = ours.sinkhorn(*args)
    close(plan, ot.sinkhorn(*args), 1e-9)
    close(plan, [[0.36552929, 0.13447071], [0.13447071, 0.36552929]], 1e-8)


# Iterates.


@pytest.mark.parametrize("iterations", [1, 2, 5, 11, 40])
@pytest.mark.parametrize("method", ["log_sinkhorn", "sinkhorn", "auto"])
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_the_iterates_are_pots(iterations, method, reg_type):
    M, a, b = problem()
    options = {"max_iter": iterations, "tol": 0, "method": method, "reg_type": reg_type}
    mine = ours.solve_batch(M, 0.1, a, b, **options)
    theirs = ot.batch.solve_batch(M, 0.1, a, b, **options)
    close(mine.plan, theirs.plan)
    close(mine.value, theirs.value)
    close(mine.value_linear, theirs.value_linear)
    assert mine.log["n_iter"] == theirs.log["n_iter"]
    for actual, expected in zip(mine.potentials, theirs.potentials, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
    close(mine.potential_b, mine.potentials[1], 0)


def test_arguments_by_position_and_by_their_old_name():
    M, a, b = problem()
    position = ours.solve_batch(M, 0.1, a, b, 20, 0, "sinkhorn", 1, 1e-3, "kl", "detach")
    named = ours.solve_batch(
        M, reg=0.1, a=a, b=b, max_iter=20, tol=0, solver="sinkhorn", reg_type="kl", grad="detach"
    )
    close(position.value, named.value, 0)
    for name in ("solve_batch", "solve_sample_batch", "dist_batch", "loss_linear_batch"):
        mine = list(inspect.signature(getattr(ours, name)).parameters)
        theirs = list(inspect.signature(getattr(ot.batch, name)).parameters)
        assert mine[: len(theirs)] == theirs
        assert mine[len(theirs) :] in ([], ["solver"])
    for name in ("sinkhorn", "emd2"):
        mine = inspect.signature(getattr(ours, name)).parameters
        assert list(mine) == list(inspect.signature(getattr(ot, name)).parameters)


def test_each_problem_stops_by_itself_below_pots_criterion():
    M, a, b = problem(6)
    M[0] *= 10
    result = ours.solve_batch(M, 0.1, a, b, tol=1e-6)
    rows = result.plan.sum(2) - a
    assert np.abs(rows).sum(1).max() <= 1e-6
    alone = ours.solve_batch(M[1:2], 0.1, a[1:2], b[1:2], tol=1e-6)
    close(result.plan[1:2], alone.plan, 0)
    assert alone.log["n_iter"] < result.log["n_iter"]
    assert (result.status == 0).all()
    assert (ours.solve_batch(M, 0.1, a, b, max_iter=2).status == 1).all()


def test_clouds():
    x, y = drawn(3, 6, 2), drawn(3, 4, 2, seed=3)
    T = ours.solve_sample_batch(x, y, 0.5, tol=0, max_iter=30, metric="minkowski", p=3)
    M = ot.batch.dist_batch(x, y, metric="minkowski", p=3)
    theirs = ot.batch.solve_batch(M, 0.5, tol=0, max_iter=30)
    close(T.plan, theirs.plan)
    for metric in ("sqeuclidean", "euclidean", "minkowski", "kl"):
        close(ours.dist_batch(x, y, metric), ot.batch.dist_batch(x, y, metric))
        close(
            ours.loss_linear_samples_batch(x, y, T.plan, metric=metric),
            ot.batch.loss_linear_samples_batch(x, y, T.plan, metric=metric),
        )
    close(ours.dist_batch(x), ot.batch.dist_batch(x))
    close(ours.loss_linear_batch(M, T.plan), ot.batch.loss_linear_batch(M, T.plan))


def test_distances_between_equal_points():
    """POT's expansion takes roots of negative numbers here."""
    x = torch.full((1, 64, 3), 0.1).requires_grad_()
    for metric in ("euclidean", "sqeuclidean"):
        M = ours.dist_batch(x, x, metric)
        assert bool((M == 0).all())
        (gradient,) = torch.autograd.grad(M.sum(), x)
        assert not bool(gradient.isnan().any())


# Gradients.


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("field", ["value", "value_linear"])
def test_the_plan_is_held_fixed(reg_type, field):
    M, a, b = (torch.from_numpy(t).requires_grad_() for t in problem())
    options = {"tol": 0, "max_iter": 30, "reg_type": reg_type}
    mine = ours.solve_batch(M, 0.1, a, b, **options)
    theirs = ot.batch.solve_batch(M, 0.1, a, b, **options)
    assert not mine.plan.requires_grad
    got, wanted = (
        torch.autograd.grad(getattr(r, field).sum(), (M, a, b), allow_unused=True)
        for r in (mine, theirs)
    )
    close(got[0], mine.plan, 0)
    for actual, expected in zip(got, wanted, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            close(actual, expected)


def test_detach_has_no_gradient():
    M = torch.from_numpy(problem()[0]).requires_grad_()
    result = ours.solve_batch(M, 0.1, grad="detach")
    assert not result.value.requires_grad and not result.value_linear.requires_grad


@pytest.mark.parametrize("grad", ["autodiff", "last_step"])
def test_other_gradients_are_pots(grad):
    M = torch.from_numpy(problem()[0]).requires_grad_()
    got, wanted = (
        torch.autograd.grad(f(M, 0.1, max_iter=20, tol=0, grad=grad).value_linear.sum(), M)[0]
        for f in (ours.solve_batch, ot.batch.solve_batch)
    )
    close(got, wanted, 0)


def test_without_pot_one_line_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ot.batch", None)
    M = problem()[0]
    for arguments, why in (({}, "method='proximal'"), ({"reg": 1, "grad": "autodiff"}, "autodiff")):
        with pytest.raises(ImportError, match=f"solve_batch: .*{why}.* runs in POT"):
            ours.solve_batch(M, **arguments)
    assert ours.solve_batch(M, 0.1).plan.shape == M.shape


# One problem.


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
@pytest.mark.parametrize("iterations", [1, 7, 40])
def test_sinkhorn_of_one_problem(method, iterations):
    M, a, b = drawn(8, 5), masses(8), masses(5, seed=2)
    options = {"method": method, "numItermax": iterations, "stopThr": 0, "log": True, "warn": False}
    mine, log = ours.sinkhorn(a, b, M, 0.1, **options)
    theirs, expected = ot.sinkhorn(a, b, M, 0.1, **options)
    close(mine, theirs)
    assert log["niter"] == expected["niter"]
    # The potentials are free up to a constant, which the two starts of POT choose differently.
    close(log["u"][:, None] * log["v"], expected["u"][:, None] * expected["v"], 1e-9)
    again = ours.sinkhorn(a, b, M, 0.1, numItermax=3, stopThr=0, warn=False,
                          warmstart=(log["log_u"], log["log_v"]))  # fmt: skip
    both = ours.sinkhorn(a, b, M, 0.1, numItermax=iterations + 3, stopThr=0, warn=False)
    close(again, both)


def test_sinkhorn_of_several_histograms():
    M, a, b = drawn(8, 5), masses(8), masses(3, 5, seed=2).T
    options = {"numItermax": 20, "stopThr": 0, "warn": False, "log": True}
    mine, log = ours.sinkhorn(a, b, M, 0.1, **options)
    theirs, expected = ot.sinkhorn(a, b, M, 0.1, **options)
    close(mine, theirs)
    assert log["u"].shape == expected["u"].shape and log["v"].shape == expected["v"].shape


def test_sinkhorn_warns_where_it_did_not_converge():
    args = (masses(8), masses(5), drawn(8, 5), 0.01)
    with pytest.warns(UserWarning, match="numItermax was reached"):
        ours.sinkhorn(*args, numItermax=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.sinkhorn(*args, numItermax=2, warn=False)


def test_the_plan_of_sinkhorn_has_the_gradient_of_the_limit():
    M, a, b = (torch.from_numpy(t).requires_grad_() for t in (drawn(4, 5), masses(4), masses(5)))
    weight = torch.from_numpy(drawn(4, 5, seed=9))
    gradients = [
        torch.autograd.grad((f(a, b, M, 0.2, stopThr=1e-13) * weight).sum(), M)[0]
        for f in (ours.sinkhorn, ot.sinkhorn)
    ]
    close(*gradients, 1e-8)  # POT differentiates its iterations


# The exact distance.


def test_emd2():
    M, a, b = drawn(7, 9), masses(7), masses(9, seed=2)
    cost, log = ours.emd2(a, b, M, log=True, return_matrix=True)
    theirs, expected = ot.emd2(a, b, M, log=True, return_matrix=True)
    close(cost, theirs)
    close(log["cost"], cost, 0)
    for name in ("u", "v", "G"):
        close(log[name], expected[name])
    assert log["warning"] is None and log["result_code"] == expected["result_code"]
    close(ours.emd2([], b, M), ot.emd2([], b, M))
    several = np.stack([b, masses(9, seed=4)], 1)
    close(ours.emd2(a, several, M), ot.emd2(a, several, M))
    with pytest.warns(UserWarning, match="numItermax was reached"):
        _, log = ours.emd2(a, b, M, numItermax=1, log=True)
    assert log["result_code"] == 3


def test_emd2_has_pots_gradients():
    M, a, b = (torch.from_numpy(t).requires_grad_() for t in (drawn(7, 9), masses(7), masses(9)))
    got, wanted = (torch.autograd.grad(f(a, b, M), (M, a, b)) for f in (ours.emd2, ot.emd2))
    for actual, expected in zip(got, wanted, strict=True):
        close(actual, expected)


def test_emd2_looks_at_the_totals():
    with pytest.raises(ValueError, match="same sum"):
        ours.emd2([1.0], [2.0], [[1.0]])
    assert ours.emd2([1.0], [2.0], [[3.0]], check_marginals=False) == 3.0
    with pytest.raises(ValueError, match="non-negative"):
        ours.emd2([1.5, -0.5], [1.0], [[1.0], [1.0]])


# Kinds, dtypes, refusals.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_in_numpy_out(dtype):
    M, a, b = (t.astype(dtype) for t in problem())
    result = ours.solve_batch(M, 0.1, a, b)
    for value in (result.value, result.value_linear, result.plan, *result.potentials):
        assert isinstance(value, np.ndarray) and value.dtype == dtype
    tensors = ours.solve_batch(*(torch.from_numpy(t) for t in (M,)), 0.1, torch.from_numpy(a))
    assert isinstance(tensors.plan, torch.Tensor) and tensors.plan.dtype == getattr(torch, dtype)
    assert isinstance(ours.emd2(a[0], b[0], M[0], check_marginals=False), np.floating)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "method must be one of", lambda M: ours.solve_batch(M, 1, method="newton")),
        (ValueError, "reg_type must be one of", lambda M: ours.solve_batch(M, 1, reg_type="l2")),
        (ValueError, "grad must be one of", lambda M: ours.solve_batch(M, 1, grad="implicit")),
        (ValueError, "reg must be positive", lambda M: ours.solve_batch(M, method="sinkhorn")),
        (ValueError, "inner_iter=2 is not", lambda M: ours.solve_batch(M, 1, inner_iter=2)),
        (ValueError, "inner_reg=1.0 is not", lambda M: ours.solve_batch(M, 1, inner_reg=1.0)),
        (TypeError, "both given", lambda M: ours.solve_batch(M, method="sinkhorn", solver="auto")),
        (ValueError, r"M must be \(B, n, m\)", lambda M: ours.solve_batch(M[0], 1)),
        (TypeError, "all torch tensors", lambda M: ours.solve_batch(M, 1, torch.ones(5, 10))),
        (TypeError, "all torch tensors", lambda M: ours.solve_batch(M, 1, a="uniform")),
        (ValueError, "nx=3 is not", lambda M: ours.dist_batch(M, M, nx=3)),
        (ValueError, "metric must be one of", lambda M: ours.dist_batch(M, M, "cosine")),
        (ValueError, "verbose=True is not", lambda M: ours.sinkhorn([], [], M[0], 1, verbose=True)),
        (ValueError, "tau=9 is not", lambda M: ours.sinkhorn([], [], M[0], 1, tau=9)),
        (ValueError, "method must be", lambda M: ours.sinkhorn([], [], M[0], 1, "greenkhorn")),
        (ValueError, "processes=2 is not", lambda M: ours.emd2([], [], M[0], processes=2)),
        (ValueError, "center_dual=False", lambda M: ours.emd2([], [], M[0], center_dual=False)),
    ],
)
def test_what_is_not_supported_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call(problem()[0])


def test_an_older_pot_is_named(monkeypatch):
    monkeypatch.setattr(ot.batch, "solve_batch", lambda M, reg, solver="sinkhorn": None)
    with pytest.raises(ImportError, match=r"needs pot>=0\.9\.7"):
        batch_module.solve_batch(problem()[0])


def test_zero_masses():
    M, a, b = problem(2, 4, 3)
    a[:, 1] = 0
    b[:, 2] = 0
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    for reg_type in ("kl", "entropy"):
        result = ours.solve_batch(M, 0.1, a, b, reg_type=reg_type)
        assert np.isfinite(result.value).all()
        assert not result.plan[:, 1].any() and not result.plan[:, :, 2].any()
        assert (result.potential_a[:, 1] == -np.inf).all()
