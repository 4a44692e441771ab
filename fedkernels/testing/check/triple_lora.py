"""The named cases of the triple-matrix LoRA family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import refusals
from fedkernels.testing.budget import error_budget, long_double
from fedkernels.testing.cases import (
    SELECT_MIDDLE_CASES,
    TRIPLE_LORA_CASES,
    select_middle_inputs,
    triple_lora_inputs,
)
from fedkernels.testing.check.compare import (
    Verdict,
    choose,
    selection_is_exact,
    verdict,
    within_budget,
)
from fedkernels.testing.check.row import CheckRow
from fedkernels.testing.inputs import random_tensor
from fedkernels.triple_lora.api import OPS, fold_middle, triple_lora_delta, triple_lora_linear

__all__ = ["check"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class _Variant:
    """A named case of `fedkernels.testing.cases`, called in another way.

    frozen: what does not train. options: replace the case's. base: for `triple_lora_delta`, whether
    the adapter is added to something.
    """

    name: str
    case: str
    frozen: tuple[str, ...] = ("weight", "bias")
    options: Mapping[str, Any] = field(default_factory=dict)
    float32_adapters: bool = False
    base: bool = True


_LINEAR = (
    *(_Variant(case.name, case.name) for case in TRIPLE_LORA_CASES),
    _Variant("weight and bias trained", "batched", frozen=()),
    _Variant("A frozen", "odd", frozen=("weight", "bias", "A")),
    _Variant("only T trained", "small", frozen=("weight", "bias", "x", "A", "B")),
    _Variant("dropout", "batched", options={"dropout_p": 0.3, "training": True}),
    _Variant("dropout of everything", "odd", options={"dropout_p": 1.0, "training": True}),
    _Variant("dropout, not training", "odd", options={"dropout_p": 0.5}),
    _Variant("dropout and blocks", "both-blocks", options={"dropout_p": 0.5, "training": True}),
    _Variant("float32 adapters", "batched", float32_adapters=True),
)
_DELTA = (
    _Variant("on a base", "odd"),
    _Variant("without a base", "odd", base=False),
    _Variant("four-dimensions", "four-dimensions"),
    _Variant("blocks on a base", "both-blocks"),
    _Variant("blocks without a base", "both-blocks", base=False),
    _Variant("dropout", "batched", options={"dropout_p": 0.3, "training": True}),
    _Variant("float32 adapters", "batched", float32_adapters=True),
)
_CASES = {case.name: case for case in TRIPLE_LORA_CASES}
_ADAPTERS = ("A", "T", "B")


def _call(
    variant: _Variant, op: str, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor | None], dict[str, Any], Tensor]:
    """(tensors, options, gradient of the output)."""
    case = _CASES[variant.case]
    arguments = {**triple_lora_inputs(case, dtype=dtype), **variant.options}
    shape = (*case.leading, case.out_features)
    if op == "triple_lora_delta":
        del arguments["weight"], arguments["bias"]
        arguments["base"] = random_tensor(shape, dtype=dtype, seed=98) if variant.base else None
        arguments["out_features"] = None if variant.base else case.out_features
    if variant.float32_adapters:
        wide = triple_lora_inputs(case, dtype=torch.float32)
        arguments.update({name: wide[name] for name in _ADAPTERS})
    names = ("x", "weight", *_ADAPTERS, "bias", "base")
    tensors = {name: arguments.pop(name) for name in names if name in arguments}
    moved = {
        name: None if t is None else _leaf(t, device, name not in variant.frozen)
        for name, t in tensors.items()
    }
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    grad = random_tensor(shape, dtype=dtype, seed=99).to(device)
    return moved, options, grad


def _leaf(tensor: Tensor, device: torch.device, trained: bool) -> Tensor:
    return tensor.detach().to(device).requires_grad_(trained)


def check(device: torch.device) -> Iterator[CheckRow]:
    """Every case on every backend that `device` has, in every dtype."""
    functions: tuple[tuple[str, Callable[..., Tensor], tuple[_Variant, ...]], ...] = (
        ("triple_lora_linear", triple_lora_linear, _LINEAR),
        ("triple_lora_delta", triple_lora_delta, _DELTA),
    )
    for op, function, variants in functions:
        for variant in variants:
            for dtype in DTYPES:
                if variant.float32_adapters and dtype not in (torch.bfloat16, torch.float16):
                    continue
                tensors, options, grad = _call(variant, op, dtype, device)
                compare = partial(within_budget, function, tensors, options, grad)
                yield from _over_backends(op, variant.name, dtype, grad, compare)
    yield from _fold(device)
    yield from _select(device)


def _over_backends(
    op: str,
    case: str,
    dtype: torch.dtype,
    sample: Tensor,
    compare: Callable[..., Verdict],
) -> Iterator[CheckRow]:
    for backend, reason in refusals(OPS[op], sample).items():
        if reason is None:
            try:
                found = compare(backend=backend)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                found = Verdict(False, math.inf, backend, f"{type(error).__name__}: {first}")
            yield _row(op, case, dtype, found)
        else:
            yield CheckRow("triple_lora", op, case, backend, _label(dtype), "skipped", reason)


def _row(op: str, case: str, dtype: torch.dtype, found: Verdict) -> CheckRow:
    status = "passed" if found.passed else "failed"
    where = (op, case, found.backend, _label(dtype), status)
    return CheckRow("triple_lora", *where, found.detail, found.used)


def _label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fold(device: torch.device) -> Iterator[CheckRow]:
    """`fold_middle`, which is plain PyTorch, against the product written out."""
    for case, middle, residual in (
        ("plain", True, True),
        ("no residual", True, False),
        ("no middle", False, True),
    ):
        for dtype in DTYPES:
            B, T, grad = (
                random_tensor(shape, dtype=dtype, seed=seed).to(device)
                for seed, shape in enumerate(((23, 5), (5, 5), (23, 5)))
            )
            b, t = B.clone().requires_grad_(), T.clone().requires_grad_()
            q = fold_middle(b, t if middle else None, scale=0.5, residual=residual)
            inputs = [b, t] if middle else [b]
            actual = (q.detach(), *torch.autograd.grad(q, inputs, grad))

            def stated(
                wide: Any, B: Any, T: Any, grad: Any, eye: Any, middle=middle, residual=residual
            ) -> list[Any]:
                T = wide(T) * middle + eye * (residual or not middle)
                B, grad = wide(B), wide(grad)
                return [0.5 * (B @ T), 0.5 * (grad @ T.T), 0.5 * (B.T @ grad)]

            compute = torch.float64 if dtype == torch.float64 else torch.float32
            eye = torch.eye(5, dtype=compute, device=device)
            narrow = stated(lambda tensor, to=compute: tensor.to(to), B, T, grad, eye)
            exact = stated(long_double, B, T, grad, long_double(eye))
            reports = [
                error_budget(got, near.to(dtype), true, name=name, sum_length=23)
                for name, got, near, true in zip(
                    ("Q", "dB", "dT"), actual, narrow, exact, strict=False
                )
            ]
            yield _row("fold_middle", case, dtype, verdict(reports, "reference"))


def _select(device: torch.device) -> Iterator[CheckRow]:
    for dtype in DTYPES:
        for case, middle, scores, rank, keywords in _selections(dtype, device):
            compare = partial(selection_is_exact, middle, scores, rank, **keywords)
            yield from _over_backends("select_middle", case, dtype, middle, compare)


def _selections(
    dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor, int, dict[str, Any]]]:
    """(name, middle, scores, rank, index or previous)."""
    for case in SELECT_MIDDLE_CASES:
        inputs = select_middle_inputs(case, dtype=dtype)
        yield case.name, inputs["middle"].to(device), inputs["scores"].to(device), case.rank, {}

    def normal(*shape: int, seed: int, layout: str = "contiguous") -> Tensor:
        return random_tensor(shape, dtype=dtype, seed=seed, layout=layout).to(device)

    middle, scores = normal(4, 16, 16, seed=1), normal(4, 16, 16, seed=2)
    for layout in ("strided", "transposed", "padded"):
        m, s = (normal(3, 9, 9, seed=seed, layout=layout) for seed in (1, 2))
        yield layout, m, s, 4, {}
    yield "all equal", middle, torch.ones_like(scores), 5, {}
    signed = torch.zeros_like(scores)
    signed[..., ::2] = -0.0  # equal to 0: a tie, not a lower score
    yield "zeros of both signs", middle, signed, 5, {}
    before = choose(normal(4, 16, 16, seed=3), 6, None)
    near = choose(scores + normal(4, 16, 16, seed=4) * 0.2, 6, None)
    yield "previous, far", middle, scores, 6, {"previous": before}
    yield "previous, near", middle, scores, 6, {"previous": near.flip(-1)}
    yield "given index", middle, scores, 6, {"index": before.flip(-1)}
