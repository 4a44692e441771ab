"""The named cases of the prototype functions: results and gradients, indices, means, clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import refusals, resolve
from fedkernels.prototype import (
    KMeans,
    class_mean,
    kmeans,
    prototype_assign,
    prototype_cross_entropy,
    prototype_distance,
    prototype_softmax,
)
from fedkernels.prototype.api import OPS
from fedkernels.testing.budget import BudgetReport, error_budget
from fedkernels.testing.check.compare import Verdict, verdict
from fedkernels.testing.check.row import CheckRow
from fedkernels.testing.inputs import random_tensor
from fedkernels.testing.prototype_cases import PROTOTYPE_CASES, prototype_inputs

__all__ = ["check", "nearest_is_exact", "prototype_within_budget"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LEAVES = ("x", "prototypes", "log_prior")
_FIELDS = {
    "prototype_distance": (),
    "prototype_assign": ("distance",),
    "prototype_softmax": ("prob", "lse", "mass"),
    "prototype_cross_entropy": (),
    "class_mean": ("mean", "count"),
}
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    prototype_distance, prototype_assign, prototype_softmax, prototype_cross_entropy, class_mean,
    kmeans,
)  # fmt: skip


def check(device: torch.device) -> Iterator[CheckRow]:
    """Every case on every backend that `device` has, in every dtype."""
    for function in _FUNCTIONS:
        name = function.__name__
        for case in PROTOTYPE_CASES:
            if name == "kmeans" and case.n < case.k:
                continue
            for dtype in _DTYPES:
                inputs = {
                    key: value.to(device) if isinstance(value, Tensor) else value
                    for key, value in prototype_inputs(case, name, dtype=dtype).items()
                }
                yield from _over_backends(function, case.name, inputs)


def _over_backends(
    function: Callable[..., Any], case: str, inputs: dict[str, Any]
) -> Iterator[CheckRow]:
    op, x = function.__name__, inputs["x"]
    label = str(x.dtype).removeprefix("torch.")
    for backend, reason in refusals(OPS[op], x).items():
        place = ("prototype", op, case, backend, label)
        if reason is not None:
            yield CheckRow(*place, "skipped", reason)
            continue
        try:
            found = prototype_within_budget(function, inputs, backend=backend)
            if function is prototype_assign and found.passed:
                nearest = nearest_is_exact(**inputs, backend=backend)
                found = found if nearest.passed else nearest
        except Exception as error:  # a kernel that raises has failed; the others still run
            line = (str(error).splitlines() or [""])[0]
            found = Verdict(False, math.inf, backend, f"{type(error).__name__}: {line}")
        yield CheckRow(*place, "passed" if found.passed else "failed", found.detail, found.used)


def prototype_within_budget(
    function: Callable[..., Any], inputs: Mapping[str, Any], *, backend: str = "auto"
) -> Verdict:
    """Results and gradients of `function(**inputs, backend=backend)` within budget?

    The exact results are the reference's on the same values in float64. float64 itself is held to
    the reference by what two right orders of its sums differ by. Each result counts as one row:
    those of a gradient are sums that may cancel. A gradient is the difference of two sums, over up
    to max(N, K) terms, each of the size of the other: its budget has 4 roundings more, and half the
    root of that length for their order.
    """
    op, x = function.__name__, inputs["x"]
    name = resolve(op, backend, OPS[op], x)
    actual = _results(function, inputs, name)
    near = actual if name == "reference" else _results(function, inputs, "reference")
    wide = {
        key: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    exact = near if x.dtype == torch.float64 else _results(function, wide, "reference")
    others = [t for t in inputs.values() if isinstance(t, Tensor)]
    length = 32 * sum(max(t.shape, default=1) for t in others)
    reports = []
    for key, result in actual.items():
        rows = (t.reshape(1, -1).cpu() for t in (result, near[key], exact[key]))
        report = error_budget(*rows, name=key, sum_length=length)
        if key[1:] in _LEAVES and "prototypes" in inputs and result.numel():
            terms = max(len(x), len(inputs["prototypes"]))
            report = _widened(report, result, 4 + terms**0.5 / 2)
        reports.append(report)
    return verdict(reports, name)


def _widened(report: BudgetReport, result: Tensor, roundings: float) -> BudgetReport:
    values = result.double()
    sizes = {"max": float(values.abs().max()), "rms": float(values.square().mean().sqrt())}
    more = roundings * torch.finfo(result.dtype).eps
    measures = tuple(
        replace(m, allowed=m.allowed + more * sizes.get(m.name, 1.0)) for m in report.measures
    )
    return replace(report, measures=measures)


def nearest_is_exact(
    x: Tensor,
    prototypes: Tensor,
    *,
    metric: str = "sqeuclidean",
    k: int = 1,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Verdict:
    """Are the k indices of `prototype_assign` those of float64's k smallest distances?

    Where two of those are within rounding of one another, either may come first.
    """
    name = resolve("prototype_assign", backend, OPS["prototype_assign"], x)
    found = prototype_assign(x, prototypes, metric=metric, k=k, mask=mask, backend=backend)
    exact = prototype_distance(x.double(), prototypes.double(), metric=metric, backend="reference")
    # What rounding may exchange: a square is a sum of its own size, a product one of its terms.
    size = exact.abs()
    if metric == "dot":
        size = x.double().norm(dim=1)[:, None] * prototypes.double().norm(dim=1)
    elif metric == "cosine":
        size = torch.ones_like(exact)
    slack = (8 + x.shape[1]) * torch.finfo(found.distance.dtype).eps * size
    if mask is not None:
        exact = torch.where(mask, exact, torch.inf)
    best = exact.sort(dim=1).values[:, :k]
    index = found.index[:, : best.shape[1]]
    taken = exact.gather(1, index.clamp(min=0))
    room = slack.gather(1, index.clamp(min=0))
    right = torch.where(index < 0, best == torch.inf, (taken - best).abs() <= room)
    # No prototype comes twice.
    order = index.sort(dim=1).values
    right[:, 1:] &= (order.diff(dim=1) > 0) | (order[:, 1:] < 0)
    wrong = int((~right).sum())
    return Verdict(not wrong, math.inf if wrong else 0.0, name, f"{wrong} of {right.numel()} wrong")


def _results(
    function: Callable[..., Any], inputs: Mapping[str, Any], backend: str
) -> dict[str, Tensor]:
    """The results, and the gradients of their sum under fixed weights."""
    given = {
        key: value.detach().requires_grad_() if key in _LEAVES and value is not None else value
        for key, value in inputs.items()
    }
    found = function(**given, backend=backend)
    if isinstance(found, KMeans):
        # A double sum of what was rounded to the centers' dtype.
        return {"centers": found.centers, "inertia": found.inertia.to(found.centers.dtype)}
    fields = _FIELDS[function.__name__]
    results = {field: getattr(found, field) for field in fields} or {"result": found}
    results = {key: t for key, t in results.items() if t.is_floating_point()}
    leaves = {key: given[key] for key in _LEAVES if given.get(key) is not None}
    results = {key: t for key, t in results.items() if t.requires_grad or not leaves}
    if not leaves:
        return results
    # Rows that are empty or without anything are inf: their weights have to be 0.
    weights = [
        random_tensor(t.shape, dtype=t.dtype, seed=len(key)).to(t.device)
        for key, t in results.items()
    ]
    weights = [
        torch.where(t.isfinite(), w, 0.0) for t, w in zip(results.values(), weights, strict=True)
    ]
    grads = torch.autograd.grad(list(results.values()), list(leaves.values()), weights)
    named = {f"d{key}": g for key, g in zip(leaves, grads, strict=True)}
    return {**{key: t.detach() for key, t in results.items()}, **named}
