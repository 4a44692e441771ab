"""The comparisons behind `check_kernels`, which are the gates of the benchmarks too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels._backend import resolve
from fedkernels.testing.budget import BudgetReport, error_budget
from fedkernels.testing.check.exact import long_double_results
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

# A row of these is a handful of sums over all tokens, which may cancel: its own size is no measure
# of what two right orders of summation differ by. Row by row, the budget refused a product with its
# sums permuted in 1 to 3 % of draws (rows of 4 and 5 elements); as one row in none
# of 1200.
_FACTOR_GRADIENTS = ("dA", "dT", "dB", "dbias")


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
    the same values in float64; for float64 itself `exact.py` states them in long double. A dropout
    mask is the same in all runs, drawn from a fixed seed.
    """
    op = function.__name__
    first = next(value for value in tensors.values() if value is not None)
    name = resolve(op, backend, OPS[op], first)
    actual = _run(function, tensors, grad_output, {**options, "backend": backend})
    reference = _run(function, tensors, grad_output, {**options, "backend": "reference"})
    exact: Mapping[str, Tensor | np.ndarray]
    if first.dtype == torch.float64:
        exact = long_double_results(tensors, options, grad_output, seed=_dropout_seed(first))
    else:
        wide = {key: None if t is None else _double(t) for key, t in tensors.items()}
        doubles = _run(function, wide, grad_output.double(), {**options, "backend": "reference"})
        exact = {key: value.cpu() for key, value in doubles.items()}
    length = max((size for t in tensors.values() if t is not None for size in t.shape), default=1)
    reports = []
    for key, result in actual.items():
        wanted = tensors.get(key.removeprefix("d"))
        if wanted is not None and result.dtype != wanted.dtype:
            return Verdict(False, math.inf, name, f"{key} has dtype {result.dtype}")
        near, true = reference[key], exact[key]
        if key in _FACTOR_GRADIENTS:
            result, near, true = result.reshape(1, -1), near.reshape(1, -1), true.reshape(1, -1)
        # Two sums of at most that length follow one another.
        reports.append(error_budget(result, near, true, name=key, sum_length=2 * length))
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
    """The index of `select_middle`, stated with numpy's stable sort (which puts NaN last)."""
    count = rank * rank
    flat = scores.detach().double().cpu().reshape(-1, scores.shape[-2] * scores.shape[-1]).numpy()
    index = np.sort(np.argsort(-flat, axis=1, kind="stable")[:, :count], axis=1)
    if previous is not None:
        for row, slots in zip(index, previous.cpu().reshape(-1, count).tolist(), strict=True):
            stay = set(row.tolist())
            newcomers = iter(sorted(stay - set(slots)))
            row[:] = [slot if slot in stay else next(newcomers) for slot in slots]
    chosen = torch.from_numpy(np.ascontiguousarray(index)).to(scores.device)
    return chosen.reshape(*scores.shape[:-2], count)


def _dropout_seed(like: Tensor) -> Tensor:
    """The seed that the public functions draw first after `torch.manual_seed(_SEED)`."""
    with _fixed_seed(like.device):
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=like.device)


@contextmanager
def _fixed_seed(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        yield


def _run(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Tensor | None],
    grad_output: Tensor,
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    with _fixed_seed(grad_output.device):  # the same dropout mask in every run
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
