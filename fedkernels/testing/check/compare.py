"""The comparisons behind `check_kernels`, which are the gates of the benchmarks too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import resolve
from fedkernels.testing.budget import BudgetReport, error_budget
from fedkernels.testing.inputs import random_tensor
from fedkernels.triple_lora.api import OPS, select_middle, triple_lora_linear

__all__ = [
    "Verdict",
    "choose",
    "linear_within_budget",
    "selection_is_exact",
    "verdict",
    "within_budget",
]

_SEED = 4711


@dataclass(frozen=True)
class Verdict:
    """What a comparison found. used: the largest share of an error budget (inf: not comparable)."""

    passed: bool
    used: float
    backend: str
    detail: str


def within_budget(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    grad_output: Tensor,
    *,
    backend: str,
) -> Verdict:
    """Output and gradients of `function(**tensors, **options, backend=backend)` within budget?

    Gradients are those to the tensors that require them. The exact results are the reference's on
    the same values in float64. A dropout mask is the same in all three, drawn from a fixed seed.
    """
    op = function.__name__
    first = next(value for value in tensors.values() if value is not None)
    name = resolve(op, backend, OPS[op], first)
    actual = _run(function, tensors, grad_output, {**options, "backend": backend})
    reference = _run(function, tensors, grad_output, {**options, "backend": "reference"})
    wide = {key: None if t is None else _double(t) for key, t in tensors.items()}
    exact = _run(function, wide, grad_output.double(), {**options, "backend": "reference"})
    length = max((size for t in tensors.values() if t is not None for size in t.shape), default=1)
    reports = [
        error_budget(
            actual[key],
            reference[key],
            exact[key].to("cpu"),
            name=key,
            # Two products of that length follow one another.
            sum_length=2 * length,
        )
        for key in actual
    ]
    for key, tensor in tensors.items():
        gradient = actual.get(f"d{key}")
        if tensor is not None and gradient is not None and gradient.dtype != tensor.dtype:
            return Verdict(False, math.inf, name, f"d{key} has dtype {gradient.dtype}")
    return verdict(reports, name)


def linear_within_budget(
    tensors: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    grad_output: Tensor,
    *,
    backend: str = "auto",
) -> Verdict:
    """`within_budget` of `triple_lora_linear`; tensors: x, weight, A, T, B and maybe bias."""
    return within_budget(triple_lora_linear, tensors, options, grad_output, backend=backend)


def selection_is_exact(
    middle: Tensor,
    scores: Tensor,
    rank: int,
    *,
    index: Tensor | None = None,
    previous: Tensor | None = None,
    backend: str = "auto",
) -> Verdict:
    """Index, T and gradients of `select_middle` equal to an independent statement, bit for bit?

    The statement: a stable descending sort of keys in which NaN stands below -inf, cut at rank^2,
    ascending or in `previous`' slots; T gathered there; gradients scattered, dT and dT * middle.
    """
    name = resolve("select_middle", backend, OPS["select_middle"], middle)
    m = middle.detach().clone().requires_grad_()
    s = scores.detach().clone().requires_grad_()
    T, chosen = select_middle(m, s, rank, index=index, previous=previous, backend=backend)
    grad = random_tensor(T.shape, dtype=T.dtype, seed=_SEED).to(T.device)
    dm, ds = torch.autograd.grad(T, (m, s), grad)

    expected = choose(scores, rank, previous) if index is None else index
    flat = middle.flatten(-2)
    values = flat.gather(-1, expected)
    zeros = torch.zeros_like(flat)
    dT = grad.flatten(-2)
    wanted = {
        "index": (chosen, expected),
        "T": (T.flatten(-2), values),
        "dmiddle": (dm.flatten(-2), zeros.scatter(-1, expected, dT)),
        "dscores": (ds.flatten(-2), zeros.scatter(-1, expected, dT * values)),
    }
    for key, (got, want) in wanted.items():
        if got.shape != want.shape or got.dtype != want.dtype:
            return Verdict(False, math.inf, name, f"{key} is {got.dtype} {tuple(got.shape)}")
        wrong = int((got != want).sum())
        if wrong:
            return Verdict(False, math.inf, name, f"{key}: {wrong} of {got.numel()} differ")
    return Verdict(True, 0.0, name, "index, values and gradients equal")


def choose(scores: Tensor, rank: int, previous: Tensor | None) -> Tensor:
    """The index of `select_middle`, stated with Python's stable sort."""
    count = rank * rank
    flat = scores.detach().double().cpu().flatten(-2)
    rows = []
    kept = None if previous is None else previous.cpu().reshape(-1, count)
    for number, row in enumerate(flat.reshape(-1, flat.shape[-1]).tolist()):
        # sorted() is stable: ties keep the order of their indices.
        order = sorted(range(len(row)), key=lambda i, row=row: _key(row[i]))
        chosen = sorted(order[:count])
        if kept is not None:
            slots = kept[number].tolist()
            newcomers = iter(sorted(set(chosen) - set(slots)))
            stay = set(chosen)
            chosen = [slot if slot in stay else next(newcomers) for slot in slots]
        rows.append(chosen)
    return torch.tensor(rows, dtype=torch.int64, device=scores.device).view(
        *scores.shape[:-2], count
    )


def _key(score: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(score) else (False, -score)


def _run(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Tensor | None],
    grad_output: Tensor,
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    devices = [grad_output.device] if grad_output.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)  # the same dropout mask in every run
        y = function(**tensors, **options)
    wanted = {f"d{key}": t for key, t in tensors.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(y, list(wanted.values()), grad_output) if wanted else ()
    return {"y": y.detach(), **dict(zip(wanted, grads, strict=True))}


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def verdict(reports: Sequence[BudgetReport], backend: str) -> Verdict:
    """All reports as one verdict, which names the result that used most of its budget."""
    worst = max(reports, key=lambda report: report.used)
    if all(report.ok for report in reports):
        detail = f"{worst.used:.2f} of the error budget ({worst.name})"
        return Verdict(True, worst.used, backend, detail)
    return Verdict(False, worst.used, backend, worst.message())
