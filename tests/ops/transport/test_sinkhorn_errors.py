"""Each bad argument is refused in one line that says what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from fedkernels import BackendUnavailable, sinkhorn, sinkhorn_divergence, sinkhorn_points
from tests.ops.transport.calls import uniform

pytestmark = pytest.mark.once

COST, X = uniform(3, 5, 4), uniform(3, 5, 2)
A, B = torch.full((3, 5), 0.2), torch.full((3, 4), 0.25)
NAN = float("nan")


def refuse(error, match, function, *args, **options):
    with pytest.raises(error, match=match) as caught:
        function(*args, **{"eps": 0.1, "backend": "reference", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (TypeError, "cost must be a tensor, got list", ([[1.0]],), {}),
        (TypeError, "cost must be a dense", (COST[0].to_sparse(),), {}),
        (TypeError, "cost must be float32, .* got torch.int64", (COST.long(),), {}),
        (ValueError, r"cost must be \(n, m\) or \(B, n, m\), got \(4,\)", (COST[0, 0],), {}),
        (ValueError, r"a must be \(5,\) or \(B, 5\), got \(3, 4\)", (COST, B), {}),
        (ValueError, r"b must be \(4,\) or \(B, 4\), got \(1, 3, 4\)", (COST, A, B[None]), {}),
        (TypeError, "a must be a floating tensor", (COST, A.long()), {}),
        (ValueError, "cost holds 3 problems and a 2", (COST, A[:2]), {}),
        (ValueError, "a must be on cost's device cpu, got meta", (COST, A.to("meta")), {}),
        (ValueError, "eps must be positive and finite, got 0", (COST,), {"eps": 0}),
        (ValueError, "eps must be positive and finite, got -1", (COST,), {"eps": -1.0}),
        (ValueError, "eps must be positive and finite, got nan", (COST,), {"eps": NAN}),
        (TypeError, "eps must be a number, got str", (COST,), {"eps": "1"}),
        (ValueError, "eps must be positive .* in every", (COST,), {"eps": torch.arange(3.0)}),
        (ValueError, r"eps must be .* \(3, 1\)", (COST,), {"eps": torch.ones(3, 1)}),
        (ValueError, "cost holds 3 problems and eps 2", (COST,), {"eps": torch.ones(2)}),
        (ValueError, r"must lie in the block \(5, 4\)", (COST,), {"sizes": torch.tensor([6, 4])}),
        (ValueError, "sizes must lie in", (COST,), {"sizes": torch.tensor([-1, 4])}),
        (ValueError, r"sizes must be \(B, 2\)", (COST,), {"sizes": torch.ones(3, 3).long()}),
        (TypeError, "sizes must be an integer", (COST,), {"sizes": torch.ones(3, 2)}),
        (ValueError, "rho must be positive", (COST,), {"rho": 0.0}),
        (ValueError, "rho must be positive", (COST,), {"rho": (1.0, -2.0)}),
        (ValueError, "rho must be a number or a pair", (COST,), {"rho": (1.0, 1.0, 1.0)}),
        (TypeError, "rho must be a number", (COST,), {"rho": "1"}),
        (ValueError, '"entropy" is for balanced', (COST,), {"rho": 1.0, "reg_type": "entropy"}),
        (ValueError, '"sor" is for balanced', (COST,), {"rho": (None, 1.0), "solver": "sor"}),
        (ValueError, "reg_type must be one of kl, entropy", (COST,), {"reg_type": "KL"}),
        (ValueError, "solver must be one of", (COST,), {"solver": "newton"}),
        (ValueError, "mode must be one of auto, absorb, log", (COST,), {"mode": "linear"}),
        (ValueError, "grad must be one of envelope, implicit", (COST,), {"grad": "autodiff"}),
        (ValueError, "max_iter must be at least 1", (COST,), {"max_iter": 0}),
        (TypeError, "max_iter must be an int, got float", (COST,), {"max_iter": 5.0}),
        (ValueError, "tol must be finite and at least 0", (COST,), {"tol": -1e-3}),
        (TypeError, "tol must be a number, got NoneType", (COST,), {"tol": None}),
        (TypeError, r"init must be \(f, g\) or a SinkhornResult", (COST,), {"init": B}),
        (ValueError, r"init's g must be \(4,\)", (COST,), {"init": (A, A)}),
        (ValueError, "backend must be one of", (COST,), {"backend": "gpu"}),
    ],
)  # fmt: skip
def test_sinkhorn(error, match, args, options):
    refuse(error, match, sinkhorn, *args, **options)


@pytest.mark.parametrize("function", [sinkhorn_points, sinkhorn_divergence])
def test_points(function):
    refuse(ValueError, "same D", function, X, uniform(3, 4, 3))
    refuse(TypeError, "y must have x's dtype", function, X, X.double())
    refuse(ValueError, "metric must be one of", function, X, X, metric="dot")
    refuse(ValueError, r"x must be \(n, D\)", function, X[0, 0], X)
    refuse(TypeError, "y must be a tensor", function, X, None)
    refuse(ValueError, "y must be on x's device cpu, got meta", function, X, X.to("meta"))
    refuse(ValueError, "x holds 3 problems and y 2", function, X, X[:2])


def test_points_are_iterated_in_the_log_domain():
    refuse(
        ValueError, "mode .* one of auto, log; got 'absorb'", sinkhorn_points, X, X, mode="absorb"
    )


def test_a_divergence_has_one_rho():
    refuse(ValueError, "rho must be one number", sinkhorn_divergence, X, X, rho=(1.0, 2.0))


def test_apply_refuses_what_does_not_fit():
    found = sinkhorn(COST, eps=0.1, backend="reference")
    for V in (torch.ones(3, 5, 2), torch.ones(2, 4, 2), torch.ones(4)):
        with pytest.raises(ValueError, match=r"V must be \(3, 4, d\) or \(4, d\)"):
            found.apply(V)
    with pytest.raises(TypeError, match=r"V must be a floating tensor, got torch.int64"):
        found.apply(torch.ones(4, 2).long())


def test_unavailable_backends_say_why():
    with pytest.raises(
        BackendUnavailable, match=r"cuda: the tensors are on cpu, .* reference: can run"
    ):
        sinkhorn(COST, eps=0.1, backend="cuda")
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET=1"):
        sinkhorn(COST, eps=0.1, backend="triton")
