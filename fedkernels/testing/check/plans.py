"""Comparisons of transport plans, which are the gates of the benchmarks too.

Iterates at a fixed number of iterations are compared with the float64 reference. A plan at a
tolerance or at the optimum proves itself: potentials, marginals and, for exact transport, a dual of
the same value, all looked at in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import refusals, resolve
from fedkernels.testing.budget import error_budget
from fedkernels.testing.check.compare import Verdict, verdict
from fedkernels.testing.check.row import CheckRow
from fedkernels.testing.inputs import random_tensor
from fedkernels.transport.api import OPS, sinkhorn
from fedkernels.transport.conditional import conditional_transport
from fedkernels.transport.emd import emd
from fedkernels.transport.result import TransportStatus

__all__ = [
    "check",
    "conditional_within_budget",
    "emd_is_optimal",
    "iterates_within_budget",
    "plan_is_optimal",
]


def iterates_within_budget(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    eps: float,
    max_iter: int,
    tol: float = 0.0,
    first: int | None = None,
    backend: str = "auto",
) -> Verdict:
    """Plan, <P, C> and value of `sinkhorn` after max_iter iterations within budget?

    The start is POT's, g = -eps log b. The call runs on all problems; the first ``first`` are
    compared, with the reference in cost's dtype and in float64.
    """
    name = resolve("sinkhorn", backend, OPS["sinkhorn"], cost)
    options: dict[str, Any] = {
        "eps": eps, "max_iter": max_iter, "tol": tol, "solver": "sinkhorn",
    }  # fmt: skip
    actual = _results(cost, a, b, backend=backend, **options)
    some = slice(first)
    narrow = _results(cost[some], a[some], b[some], backend="reference", **options)
    wide = (t[some].double() for t in (cost, a, b))
    exact = _results(*wide, backend="reference", **options)
    length = max(cost.shape[1:])
    reports = []
    for key, result in actual.items():
        # One row a problem: a problem is as right as its worst entry.
        got, near, true = (r.reshape(len(r), -1) for r in (result[some], narrow[key], exact[key]))
        if got.shape[1] == 1:
            got, near, true = got.T, near.T, true.T
        reports.append(error_budget(got, near, true, name=key, sum_length=length))
    return verdict(reports, name)


def _start(b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """POT's: potentials that leave the masses out start at 0."""
    start = -eps * b.log()
    return start, start


def _results(cost: Tensor, a: Tensor, b: Tensor, **options: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        result = sinkhorn(cost, a, b, init=_start(b, options["eps"]), **options)
        return {"plan": result.plan(), "linear_cost": result.linear_cost, "value": result.value}


def plan_is_optimal(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    eps: float,
    max_iter: int,
    tol: float,
    first: int | None = None,
    backend: str = "auto",
) -> Verdict:
    """Is the plan of `sinkhorn` the optimum of marginals that are within ``tol``?

    It is if log P - log a - log b + C / eps is a sum f_i + g_j, and its rows and columns add up to
    a and b. Rounding: the exponent is rounded to its own size, the sums to the total.
    """
    name = resolve("sinkhorn", backend, OPS["sinkhorn"], cost)
    with torch.no_grad():
        result = sinkhorn(
            cost, a, b, eps=eps, max_iter=max_iter, tol=tol, init=_start(b, eps), backend=backend
        )
        plan = result.plan()[:first].double()
    cost, a, b = cost[:first].double(), a[:first].double(), b[:first].double()
    unit = torch.finfo(result.value.dtype).eps
    if bool((result.status != TransportStatus.CONVERGED).any()):
        bad = int((result.status != TransportStatus.CONVERGED).sum())
        return Verdict(False, math.inf, name, f"{bad} problems did not converge")
    n, m = cost.shape[1:]
    rows = (plan.sum(2) - a).abs().sum(1).max().item()
    columns = (plan.sum(1) - b).abs().sum(1).max().item()
    # An entry that underflows in cost's dtype has no logarithm: such a plan fails.
    exponent = plan.log() + cost / eps
    crossed = exponent - exponent.mean(1, keepdim=True) - exponent.mean(2, keepdim=True)
    ratios = float((crossed + exponent.mean((1, 2), keepdim=True)).abs().max())
    # 8 roundings of numbers of the size of C / eps (two potentials, the product, the exponential).
    size = 1 + float(cost.abs().max()) / eps
    shares = {
        "rows": rows / (tol + 2 * math.sqrt(n * m) * unit),
        "columns": columns / (tol + 2 * math.sqrt(n * m) * unit),
        "cross-ratios": ratios / (8 * size * unit),
    }
    return _worst(shares, name)


def conditional_within_budget(
    x: Tensor, y: Tensor, *, temperature: float, backend: str = "auto"
) -> Verdict:
    """Value, gradients and row costs of `conditional_transport` within budget?"""
    name = resolve("conditional_transport", backend, OPS["conditional_transport"], x)

    def results(dtype: torch.dtype, which: str) -> dict[str, Tensor]:
        points = [t.detach().to(dtype).requires_grad_() for t in (x, y)]
        found = conditional_transport(*points, temperature=temperature, backend=which)
        dx, dy = torch.autograd.grad(found.value, points)
        costs = {"row_cost": found.row_cost.detach(), "col_cost": found.col_cost.detach()}
        return {"value": found.value.detach().reshape(1), "dx": dx, "dy": dy, **costs}

    actual, narrow = results(x.dtype, name), results(x.dtype, "reference")
    exact = results(torch.float64, "reference")
    reports = [
        error_budget(got, narrow[key], exact[key], name=key, sum_length=max(len(x), len(y)))
        for key, got in actual.items()
    ]
    return verdict(reports, name)


def emd_is_optimal(cost: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Verdict:
    """Are the plan and the duals of `emd` feasible and of one value, in float64?

    That proves both. The bounds are those of rounding: a marginal is a sum of at most n + m cells,
    a dual a sum along a tree of n + m nodes whose terms are costs.
    """
    with torch.no_grad():
        result = emd(cost, a, b)
    batch, n, m = cost.shape
    unit = torch.finfo(result.value.dtype).eps
    cost = cost.double()
    a = cost.new_full((batch, n), 1 / n) if a is None else a.double()
    b = cost.new_full((batch, m), 1 / m) if b is None else b.double()
    plan, f, g = (t.double() for t in (result.plan, result.f, result.g))
    size, total, length = float(cost.abs().max()), float(a.sum(1).max()), n + m
    reduced = cost - f[:, :, None] - g[:, None, :]
    dual = (a * f).sum(1) + (b * g).sum(1)
    slack = (16 + length) * unit * size
    shares = {
        "statuses": math.inf if bool(result.status.any()) else 0.0,
        "signs": math.inf if bool((plan < 0).any()) else 0.0,
        "rows": (plan.sum(2) - a).abs().max().item() / (length * unit * total),
        "columns": (plan.sum(1) - b).abs().max().item() / (length * unit * total),
        "duals": -reduced.min().item() / (4 * unit * size),
        "slackness": (reduced * (plan > 0)).max().item() / slack,
        "values": (dual - result.value.double()).abs().max().item() / (slack * total),
    }
    return _worst(shares, "cpu")


def _worst(shares: dict[str, float], backend: str) -> Verdict:
    """The share of what is allowed that was used most. NaN is over every bound."""
    shares = {key: math.inf if math.isnan(value) else value for key, value in shares.items()}
    worst = max(shares, key=shares.__getitem__)
    used = max(shares[worst], 0.0)
    return Verdict(used <= 1, used, backend, f"{used:.2f} of what rounding allows ({worst})")


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_EMD_CASES = {
    # name: (B, n, m, whether masses are random, whether costs tie)
    "uniform": (6, 16, 16, False, False),
    "masses": (6, 9, 21, True, False),
    "ties": (6, 12, 12, False, True),
    "one row": (2, 1, 5, True, False),
    "large": (1, 130, 97, True, False),
}
_CONDITIONAL_CASES = {"small": (9, 5, 4), "tokens": (130, 100, 64), "one": (1, 1, 3)}  # N, M, D


def check(device: torch.device) -> Iterator[CheckRow]:
    """Exact and conditional transport: every case on every backend of `device`, in every dtype."""
    for case, (batch, n, m, massive, ties) in _EMD_CASES.items():
        for dtype in _DTYPES:
            cost = random_tensor((batch, n, m), seed=1)
            cost = (cost.round() if ties else cost).to(device, dtype)
            # Half masses do not add up to the same totals.
            given = massive and dtype in (torch.float32, torch.float64)
            masses = [
                random_tensor((batch, k), seed=k).double().softmax(1).to(device, dtype)
                for k in ((n, m) if given else ())
            ]
            yield from _rows("emd", case, cost, partial(_on_the_cpu, cost, *masses))
    for case, (n, m, d) in _CONDITIONAL_CASES.items():
        # float64 gradients are differences of larger terms: only long double could judge them.
        for dtype in _DTYPES[:3]:
            x, y = (random_tensor((k, d), seed=k).to(device, dtype) for k in (n, m))
            compare = partial(conditional_within_budget, x, y, temperature=1.0)
            yield from _rows("conditional_transport", case, x, compare)


def _on_the_cpu(*tensors: Tensor, backend: str) -> Verdict:
    return emd_is_optimal(*tensors)


def _rows(op: str, case: str, first: Tensor, compare: Callable[..., Verdict]) -> Iterator[CheckRow]:
    label = str(first.dtype).removeprefix("torch.")
    for backend, reason in refusals(OPS[op], first).items():
        place = ("transport", op, case, backend, label)
        if reason is not None:
            yield CheckRow(*place, "skipped", reason)
            continue
        try:
            found = compare(backend=backend)
        except Exception as error:  # a kernel that raises has failed; the others still run
            line = (str(error).splitlines() or [""])[0]
            found = Verdict(False, math.inf, backend, f"{type(error).__name__}: {line}")
        yield CheckRow(*place, "passed" if found.passed else "failed", found.detail, found.used)
