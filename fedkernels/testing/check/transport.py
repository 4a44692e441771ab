"""The named cases of Sinkhorn: forward, both kinds of gradient, plan and product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels._backend import refusals
from fedkernels.testing.budget import error_budget, long_double
from fedkernels.testing.check.compare import Verdict, verdict
from fedkernels.testing.check.exact_sinkhorn import (
    long_double_cost_gradients,
    long_double_costs,
    long_double_sinkhorn,
)
from fedkernels.testing.check.row import CheckRow
from fedkernels.testing.inputs import random_tensor
from fedkernels.testing.transport_cases import (
    SINKHORN_CASES,
    SINKHORN_POINTS_CASES,
    sinkhorn_inputs,
    sinkhorn_points_inputs,
)
from fedkernels.transport.api import OPS, sinkhorn, sinkhorn_divergence, sinkhorn_points

__all__ = ["check", "sinkhorn_within_budget"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALF_CASES = ("small", "rows", "ragged", "odd")
_TENSORS = ("cost", "x", "y", "a", "b")


def check(device: torch.device) -> Iterator[CheckRow]:
    """Every case on every backend that `device` has, in every dtype."""
    for case in SINKHORN_CASES:
        for dtype in _dtypes(case.name):
            inputs = sinkhorn_inputs(case, dtype=dtype)
            yield from _over_backends(sinkhorn, case.name, inputs, device)
    for function in (sinkhorn_points, sinkhorn_divergence):
        for points in SINKHORN_POINTS_CASES:
            if function is sinkhorn_divergence and isinstance(points.rho, tuple):
                continue
            for dtype in _dtypes(points.name):
                inputs = sinkhorn_points_inputs(points, dtype=dtype)
                yield from _over_backends(function, points.name, inputs, device)


def _dtypes(case: str) -> tuple[torch.dtype, ...]:
    """Half types are widened before anything is computed: some cases say all about them."""
    return DTYPES if case in _HALF_CASES else (torch.float32, torch.float64)


def _over_backends(
    function: Callable[..., Any], case: str, inputs: dict[str, Any], device: torch.device
) -> Iterator[CheckRow]:
    inputs = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in inputs.items()}
    first = inputs["cost" if "cost" in inputs else "x"]
    label = str(first.dtype).removeprefix("torch.")
    expected = None
    for backend, reason in refusals(OPS[function.__name__], first).items():
        place = ("transport", function.__name__, case, backend, label)
        if reason is not None:
            yield CheckRow(*place, "skipped", reason)
            continue
        try:
            expected = expected or _Expected(function, inputs)
            found = expected.compare(backend)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            found = Verdict(False, math.inf, backend, f"{type(error).__name__}: {line}")
        yield CheckRow(*place, "passed" if found.passed else "failed", found.detail, found.used)


def sinkhorn_within_budget(
    function: Callable[..., Any], inputs: Mapping[str, Any], *, backend: str
) -> Verdict:
    """Results and gradients of `function(**inputs, backend=backend)` within budget?

    Fixed iterations (tol = 0), so that every dtype computes the same function. The exact results
    are the reference's on the same values in float64; for float64 itself long double's
    (`exact_sinkhorn.py`, `exact_implicit.py`).
    """
    return _Expected(function, inputs).compare(backend)


class _Expected:
    """The specification of one call, in its dtype and exact."""

    def __init__(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        divergence = function is sinkhorn_divergence
        self.run = partial(_divergence if divergence else _solution, function)
        self.inputs = inputs
        self.reference = self.run(inputs, backend="reference")
        first = inputs["cost" if "cost" in inputs else "x"]
        if first.dtype == torch.float64:
            exact = _exact_divergence(inputs) if divergence else _exact_solution(inputs)
            self.exact = {**{k: t.cpu() for k, t in self.reference.items()}, **exact}
        else:
            wide = {
                key: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
                for key, v in inputs.items()
            }
            self.exact = {k: t.cpu() for k, t in self.run(wide, backend="reference").items()}

    def compare(self, backend: str) -> Verdict:
        actual = self.reference
        if backend != "reference":
            actual = self.run(self.inputs, backend=backend)
        tensors = [v for v in self.inputs.values() if isinstance(v, Tensor)]
        # A potential passes through all iterations: so many sums follow one another.
        steps = self.inputs["max_iter"] * max((s for t in tensors for s in t.shape), default=1)
        reports = [
            error_budget(result, self.reference[key], self.exact[key], name=key, sum_length=steps)
            for key, result in actual.items()
        ]
        return verdict(reports, backend)


def _leaves(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: v.detach().requires_grad_() if key in _TENSORS and v is not None else v
        for key, v in inputs.items()
    }


def _weights(like: Tensor) -> Tensor:
    return random_tensor(like.shape, dtype=torch.float64, seed=99).to(like.device, like.dtype)


def _gradients(result: Tensor, leaves: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    wanted = {k: leaves[k] for k in _TENSORS if leaves.get(k) is not None}
    grads = torch.autograd.grad(result, list(wanted.values()), _weights(result), retain_graph=True)
    return {f"{prefix} d{key}": g for key, g in zip(wanted, grads, strict=True)}


def _together(gradients: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One row of all gradients through the plan.

    Where the masses fix the plan (one row, one column) some of them are sums that cancel to 0:
    what their rounding is measured by is the size of all.
    """
    return {name: torch.cat([g.reshape(1, -1) for g in gradients.values()], 1)}


def _solution(function: Callable[..., Any], inputs: Mapping[str, Any], *, backend: str) -> dict:
    leaves = _leaves(inputs)
    found = function(**leaves, grad="implicit", backend=backend)
    plan = found.plan()
    V = torch.rand(plan.shape[-1], 3, generator=torch.Generator().manual_seed(7)) + 0.1
    results = {
        "value": found.value,
        "linear": found.linear_cost,
        # One solution: a problem's g may be 0 where its f is not, up to the constant between them.
        "potentials": torch.cat([found.f, found.g], -1),
        "plan": plan,
        "product": found.apply(V.to(plan.device, plan.dtype)),
    }
    gradients = _gradients(found.value, leaves, "value")
    # Mass gradients are potentials less their mean: rounding is that of the potentials.
    rows: dict[str, Tensor] = {
        key: gradients.pop(key) for key in ("value da", "value db") if key in gradients
    }
    potentials = results["potentials"].detach()
    if rows:
        gradients |= _together({**rows, "scale": potentials}, "value, masses")
    return {
        **{key: t.detach() for key, t in results.items()},
        **gradients,
        **_together(_gradients(found.linear_cost, leaves, "linear"), "gradients of linear"),
        **_together(_gradients(plan, leaves, "plan"), "gradients of plan"),
    }


def _divergence(function: Callable[..., Any], inputs: Mapping[str, Any], *, backend: str) -> dict:
    leaves = _leaves(inputs)
    found = function(**leaves, backend=backend)
    # Differences of the values of three problems, which the kernels round, and of their gradients:
    # what their rounding is measured by is the size of the terms, and of all.
    with torch.no_grad():
        term = sinkhorn_points(**inputs, backend=backend).value
    return {
        **_together({"value": found.value.detach(), "scale": term}, "value"),
        **_together(_gradients(found.value, leaves, "value"), "gradients"),
    }


def _exact_solution(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `_solution` finds, in long double."""
    points = "cost" not in inputs
    if points:
        x, y = _clouds(inputs)
        costs = long_double_costs(x, y, inputs["metric"])
    else:
        costs = long_double(inputs["cost"])
        costs = costs if costs.ndim == 3 else costs[None]
    found = _exact(costs, inputs["a"], inputs["b"], inputs["sizes"], inputs, plan=True)
    potentials = np.concatenate([found["f"], found["g"]], -1)

    def gradients(prefix: str) -> dict[str, np.ndarray]:
        dcost = found[f"{prefix}dcost"]
        given = {"cost": dcost, "a": found[f"{prefix}da"], "b": found[f"{prefix}db"]}
        if points:
            both = long_double_cost_gradients(x, y, inputs["metric"], dcost)
            given |= dict(zip("xy", both, strict=True))
        return {k: _as(inputs[k], given[k]) for k in _TENSORS if inputs.get(k) is not None}

    value = gradients("")
    masses = [value.pop(k) for k in "ab" if k in value]
    return {
        **{key: found[key] for key in ("value", "linear", "plan")},
        "potentials": potentials,
        **{f"value d{key}": gradient for key, gradient in value.items()},
        **({"value, masses": _row(*masses, potentials)} if masses else {}),
        "gradients of linear": _row(*gradients("linear ").values()),
        "gradients of plan": _row(*gradients("plan ").values()),
    }


def _exact_divergence(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `_divergence` finds in balanced problems, in long double."""
    clouds = dict(zip("xy", _clouds(inputs), strict=True))
    masses = {"x": inputs["a"], "y": inputs["b"]}
    value: Any = 0
    terms = []
    gradients: dict[str, Any] = dict.fromkeys("xyab", 0)
    for (left, right), share in ((("x", "y"), 1), (("x", "x"), -0.5), (("y", "y"), -0.5)):
        pair, metric = (clouds[left], clouds[right]), inputs["metric"]
        sizes = inputs["sizes"]
        if sizes is not None:
            sizes = sizes[:, ["xy".index(left), "xy".index(right)]]
        found = _exact(
            long_double_costs(*pair, metric), masses[left], masses[right], sizes, inputs,
            symmetric=left == right,
        )  # fmt: skip
        terms.append(found["value"])
        value = value + share * found["value"]
        parts = long_double_cost_gradients(*pair, metric, found["dcost"])
        for side, points, mass in ((left, parts[0], "da"), (right, parts[1], "db")):
            gradients[side] = gradients[side] + share * points
            side = "ab"["xy".index(side)]
            gradients[side] = gradients[side] + share * found[mass]
    rows = [_as(inputs[k], g) for k, g in gradients.items() if inputs[k] is not None]
    return {"value": _row(value, terms[0]), "gradients": _row(*rows)}


def _exact(
    costs: np.ndarray,
    a: Any,
    b: Any,
    sizes: Any,
    options: Mapping[str, Any],
    *,
    plan: bool = False,
    symmetric: bool = False,
) -> dict[str, Any]:
    leading = [t.shape[0] for t in (a, b) if t is not None and t.dim() == 2]
    batch = leading[0] if leading else len(costs)
    costs = np.broadcast_to(costs, (batch, *costs.shape[1:]))
    weight, plan_weight = (
        _weights(torch.empty(shape, dtype=torch.float64)) for shape in ((batch,), costs.shape)
    )
    return long_double_sinkhorn(
        costs, a, b, sizes, options, weight, plan_weight=plan_weight if plan else None,
        symmetric=symmetric,
    )  # fmt: skip


def _clouds(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    x, y = (t if t.dim() == 3 else t[None] for t in (inputs["x"], inputs["y"]))
    return x, y


def _as(like: Tensor, gradient: np.ndarray) -> np.ndarray:
    """Summed over the problems that shared the input."""
    return gradient if gradient.ndim == like.dim() else gradient.sum(0)


def _row(*gradients: np.ndarray) -> np.ndarray:
    """As `_together` puts them."""
    return np.concatenate([gradient.reshape(1, -1) for gradient in gradients], 1)
