"""The gates of the prototype entries: the timed call itself, held to the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkernels import class_mean, kmeans, prototype_assign
from fedkernels._backend import resolve
from fedkernels.prototype.api import OPS
from fedkernels.testing import error_budget
from fedkernels.testing.check import Verdict
from fedkernels.testing.check.compare import verdict

from ..peers import Contender
from ..problems import ClusterProblem, MeanProblem, PrototypeProblem

__all__ = [
    "kmeans_is_lloyd",
    "mean_within_budget",
    "nearest_within_budget",
    "results_within_budget",
]

_BLOCK = 1 << 22  # pairs of a block of the checks in double


def results_within_budget(
    op: str, ours: Callable[[PrototypeProblem, str], Contender]
) -> Callable[[PrototypeProblem, str], Verdict]:
    """Results and gradients of what `ours` builds within the error budget?"""

    def gate(problem: PrototypeProblem, backend: str) -> Verdict:
        name = resolve(op, backend, OPS[op], problem.x)
        actual = ours(problem, name).results()
        narrow = ours(problem, "reference").results()
        exact = ours(_doubled(problem), "reference").results()
        reports = [
            error_budget(
                *(_rows(key, result[key]) for result in (actual, narrow, exact)),
                name=key,
                sum_length=len(problem.x),
            )
            for key in actual
        ]
        return verdict(reports, name)

    return gate


def _rows(name: str, result: Tensor) -> Tensor:
    """What the budget compares. A row of dmu is a few sums over all points, which may cancel: its
    own size is no measure of what two right orders of summation differ by. One row, as mass is."""
    result = result.detach()
    return result.reshape(1, -1) if name == "dmu" or result.dim() == 0 else result


def _doubled(problem: PrototypeProblem) -> PrototypeProblem:
    def double(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().double()

    return replace(
        problem,
        x=problem.x.detach().double().requires_grad_(),
        mu=problem.mu.detach().double().requires_grad_(),
        upstream=double(problem.upstream),
        upstream_mass=double(problem.upstream_mass),
    )


def nearest_within_budget(problem: PrototypeProblem, backend: str) -> Verdict:
    """Is every prototype that was named as near as the true one, in double?

    Where two are equally near up to rounding either is right; the distance that is returned has to
    be that of the prototype that is named, and both within 8 eps of what the squares of the row
    and the prototypes leave as rounding.
    """
    name = resolve("prototype_assign", backend, OPS["prototype_assign"], problem.x)
    x, mu = problem.x.detach(), problem.mu.detach()
    found = prototype_assign(x, mu, k=problem.nearest, backend=name)
    x, mu = x.double(), mu.double()
    scale = x.square().sum(1, keepdim=True) + mu.square().sum(1).max()
    allowed = 8 * torch.finfo(problem.x.dtype).eps * scale
    worst = 0.0
    block = max(1, _BLOCK // len(mu))
    best_of = min(problem.nearest, len(mu))
    if bool((found.index[:, :best_of] < 0).any()):
        return Verdict(False, math.inf, name, "a row without a nearest prototype")
    for begin in range(0, len(x), block):
        rows = slice(begin, begin + block)
        index = found.index[rows, :best_of]
        true = _squares(x[rows], mu)
        named = true.gather(1, index)
        best = true.topk(best_of, largest=False, sorted=True).values
        for error in (named - best, found.distance[rows, :best_of].double() - named):
            worst = max(worst, float((error.abs() / allowed[rows]).max()))
        ordered = index.sort(1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            return Verdict(False, math.inf, name, "a prototype is named twice")
    detail = f"{worst:.2f} of 8 eps of the squares"
    return Verdict(worst <= 1, worst, name, detail)


def mean_within_budget(problem: MeanProblem, backend: str) -> Verdict:
    name = resolve("class_mean", backend, OPS["class_mean"], problem.x)

    def mean(x: Tensor, which: str) -> Any:
        return class_mean(x, problem.label, problem.classes, backend=which)

    found = mean(problem.x, name)
    count = torch.bincount(problem.label, minlength=problem.classes)
    if not torch.equal(found.count, count):
        return Verdict(False, math.inf, name, "counts differ")
    narrow, exact = mean(problem.x, "reference").mean, mean(problem.x.double(), "reference").mean
    reports = [error_budget(found.mean, narrow, exact, name="mean", sum_length=len(problem.x))]
    return verdict(reports, name)


def kmeans_is_lloyd(problem: ClusterProblem, backend: str) -> Verdict:
    """The sum of squares that is reported is that of the centres, and no larger than what Lloyd's
    algorithm in double reaches from the same start in as many iterations, up to 1e-4: a point
    between two centres may go either way by rounding."""
    name = resolve("kmeans", backend, OPS["kmeans"], problem.x)
    k = len(problem.start)
    found = kmeans(
        problem.x, k, init=problem.start, max_iter=problem.iterations, tol=0.0, backend=name
    )
    x, centers = problem.x.double(), problem.start.double()
    for _ in range(problem.iterations):
        index, _ = _nearest(x, centers)
        count = torch.bincount(index, minlength=k)
        sums = torch.zeros_like(centers).index_add_(0, index, x)
        centers = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], centers)
    _, wanted = _nearest(x, centers)
    index, true = _nearest(x, found.centers.double())
    reported, inertia = float(found.inertia), float(true.sum())
    errors = (
        abs(reported - inertia) / inertia / 1e-5,
        max(0.0, inertia / float(wanted.sum()) - 1) / 1e-4,
    )
    wrong = float((index != found.index).double().mean()) / 1e-4
    worst = max(*errors, wrong)
    detail = f"{errors[0]:.2f} of 1e-5 (inertia), {errors[1]:.2f} of 1e-4 (above Lloyd in double)"
    return Verdict(worst <= 1, worst, name, detail)


def _squares(x: Tensor, mu: Tensor) -> Tensor:
    """Squared distances by the expansion, which in double is exact enough to judge float32."""
    product = torch.addmm(mu.square().sum(1), x, mu.T, alpha=-2)
    return product.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def _nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index and squared distance of the nearest, in blocks of rows."""
    found = [_squares(rows, centers).min(1) for rows in x.split(max(1, _BLOCK // len(centers)))]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])
