"""The named cases of the triple-matrix LoRA family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import refusals
from fedkernels.testing.budget import error_budget
from fedkernels.testing.check.compare import (
    Verdict,
    choose,
    selection_is_exact,
    verdict,
    within_budget,
)
from fedkernels.testing.check.row import CheckRow
from fedkernels.testing.inputs import random_tensor, with_layout
from fedkernels.triple_lora.api import OPS, fold_middle, triple_lora_delta, triple_lora_linear

__all__ = ["check"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class _Case:
    """One call: sizes, options, and what differs from a contiguous x with all adapters trained."""

    name: str
    rows: tuple[int, ...] = (9,)
    d_in: int = 40
    d_out: int = 24
    rank: int = 4
    middle: bool = True
    bias: bool = False
    base: bool = True
    frozen: tuple[str, ...] = ("weight", "bias")
    layout: str = "contiguous"
    in_index: tuple[int, ...] | None = None
    out_index: tuple[int, ...] | None = None
    float32_adapters: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


_BLOCKS: dict[str, Any] = {"block": 16, "scale": 0.5}
_CASES = (
    _Case("plain", rows=(67,), d_in=96, d_out=80, rank=8, options={"scale": 2.0}),
    _Case("odd sizes", rows=(7,), d_in=37, d_out=53, rank=5),
    _Case("no rows", rows=(0,)),
    _Case("one row", rows=(1,), d_in=16, d_out=16),
    _Case("rank 1", rank=1),
    _Case("rank above width", d_in=6, d_out=5, rank=11),
    _Case("many rows", rows=(515,), d_in=64, d_out=72, rank=16),
    _Case("leading dimensions", rows=(2, 3, 5)),
    _Case("no middle", middle=False, options={"scale": 3.0}),
    _Case("no residual", options={"residual": False}),
    _Case("bias", bias=True, rows=(17,)),
    _Case("weight and bias trained", bias=True, frozen=()),
    _Case("A frozen", frozen=("weight", "bias", "A")),
    _Case("only T trained", frozen=("weight", "bias", "x", "A", "B")),
    _Case("strided x", layout="strided"),
    _Case("transposed x", layout="transposed"),
    _Case("padded x", layout="padded", d_in=35),
    _Case("expanded x", layout="expanded"),
    _Case("blocks of A", d_in=40, in_index=(0, 2), options=_BLOCKS),
    _Case("blocks of B", d_out=40, out_index=(1, 2), options=_BLOCKS),
    _Case("blocks of both", d_in=50, d_out=40, in_index=(1, 3), out_index=(2,), options=_BLOCKS),
    _Case("dropout", rows=(33,), options={"dropout_p": 0.3, "training": True}),
    _Case("dropout 1", options={"dropout_p": 1.0, "training": True}),
    _Case(
        "dropout with blocks",
        in_index=(2,),
        options={"dropout_p": 0.5, "training": True, **_BLOCKS},
    ),
    _Case("float32 adapters", float32_adapters=True),
)
_DELTA_CASES = (
    _Case("on a base", rows=(17,)),
    _Case("without a base", base=False),
    _Case("leading dimensions", rows=(2, 3)),
    _Case("blocks of B, no base", base=False, d_out=40, out_index=(0, 2), options=_BLOCKS),
    _Case("dropout", options={"dropout_p": 0.3, "training": True}),
)


def _width(index: tuple[int, ...] | None, block: int, dim: int) -> int:
    if index is None:
        return dim
    return sum(min(block, dim - block * i) for i in index)


def _inputs(
    case: _Case, op: str, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor | None], dict[str, Any], Tensor]:
    """(tensors, options, gradient of the output)."""
    block = case.options.get("block", 64)
    adapters = torch.float32 if case.float32_adapters else dtype
    shapes: dict[str, tuple[int, ...]] = {"x": (*case.rows, case.d_in)}
    if op == "triple_lora_linear":
        shapes["weight"] = (case.d_out, case.d_in)
    shapes["A"] = (case.rank, _width(case.in_index, block, case.d_in))
    shapes["T"] = (case.rank, case.rank)
    shapes["B"] = (_width(case.out_index, block, case.d_out), case.rank)
    if case.bias:
        shapes["bias"] = (case.d_out,)
    if op == "triple_lora_delta" and case.base:
        shapes["base"] = (*case.rows, case.d_out)
    tensors: dict[str, Tensor | None] = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        value = random_tensor(
            shape, dtype=adapters if name in ("A", "T", "B") else dtype, seed=seed, std=0.5
        )
        if name == "x":
            value = with_layout(value, case.layout)
        tensors[name] = value.to(device).requires_grad_(name not in case.frozen)
    if not case.middle:
        tensors["T"] = None
    options = dict(case.options)
    for name, index in (("in_index", case.in_index), ("out_index", case.out_index)):
        if index is not None:
            options[name] = torch.tensor(index, device=device)
    if case.out_index is not None and op == "triple_lora_delta" and not case.base:
        options["out_features"] = case.d_out
    grad = random_tensor((*case.rows, case.d_out), dtype=dtype, seed=99).to(device)
    return tensors, options, grad


def check(device: torch.device) -> Iterator[CheckRow]:
    """Every case on every backend that `device` has, in every dtype."""
    functions = (
        ("triple_lora_linear", triple_lora_linear, _CASES),
        ("triple_lora_delta", triple_lora_delta, _DELTA_CASES),
    )
    for op, function, cases in functions:
        for case in cases:
            for dtype in DTYPES:
                if case.float32_adapters and dtype in (torch.float32, torch.float64):
                    continue
                tensors, options, grad = _inputs(case, op, dtype, device)

                def compare(backend: str, call=(function, tensors, options, grad)) -> Verdict:
                    return within_budget(*call, backend=backend)

                yield from _over_backends(op, case.name, dtype, tensors["x"], compare)
    yield from _fold(device)
    yield from _select(device)


def _over_backends(
    op: str,
    case: str,
    dtype: torch.dtype,
    sample: Tensor,
    compare: Callable[[str], Verdict],
) -> Iterator[CheckRow]:
    for backend, reason in refusals(OPS[op], sample).items():
        if reason is None:
            try:
                found = compare(backend)
            except Exception as error:  # noqa: BLE001  what a kernel raises is what is reported
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
    for case, middle, residual in (
        ("plain", True, True),
        ("no residual", True, False),
        ("no middle", False, True),
    ):
        for dtype in DTYPES:
            B = random_tensor((23, 5), dtype=dtype, seed=1).to(device).requires_grad_()
            T = random_tensor((5, 5), dtype=dtype, seed=2).to(device).requires_grad_()
            grad = random_tensor((23, 5), dtype=dtype, seed=3).to(device)
            results = []
            for compute in (dtype, torch.float64):
                b = B.detach().to(compute).requires_grad_()
                t = T.detach().to(compute).requires_grad_() if middle else None
                q = fold_middle(b, t, scale=0.5, residual=residual)
                inputs = [b] if t is None else [b, t]
                results.append((q, *torch.autograd.grad(q, inputs, grad.to(compute))))
            # Independent of the package: the product written out, computed wide and rounded.
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            m = (T.detach().to(wide) if middle else 0) + (
                torch.eye(5, device=device, dtype=wide) if residual or not middle else 0
            )
            g, b = grad.to(wide), B.detach().to(wide)
            plain = [0.5 * b @ m, 0.5 * g @ m.T, 0.5 * b.T @ g][: len(results[0])]
            reports = [
                error_budget(a.detach(), p.to(dtype), e.detach().cpu(), name=n, sum_length=23)
                for a, p, e, n in zip(
                    results[0], plain, results[1], ("Q", "dB", "dT"), strict=False
                )
            ]
            yield _row("fold_middle", case, dtype, verdict(reports, "reference"))


def _select(device: torch.device) -> Iterator[CheckRow]:
    for dtype in DTYPES:
        for case, middle, scores, rank, keywords in _selections(dtype, device):

            def compare(backend: str, call=(middle, scores, rank), keywords=keywords) -> Verdict:
                return selection_is_exact(*call, **keywords, backend=backend)

            yield from _over_backends("select_middle", case, dtype, middle, compare)


def _selections(
    dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor, int, dict[str, Tensor]]]:
    def normal(*shape: int, seed: int = 0) -> Tensor:
        return random_tensor(shape, dtype=dtype, seed=seed).to(device)

    yield "normal scores", normal(7, 32, 32), normal(7, 32, 32, seed=1), 8, {}
    yield "model width", normal(2, 128, 128), normal(2, 128, 128, seed=1), 16, {}
    yield "leading dimensions", normal(2, 3, 9, 9), normal(2, 3, 9, 9, seed=1), 4, {}
    yield "one matrix", normal(13, 13), normal(13, 13, seed=1), 3, {}
    yield "rank 1", normal(3, 6, 6), normal(3, 6, 6, seed=1), 1, {}
    yield "all entries", normal(3, 6, 6), normal(3, 6, 6, seed=1), 6, {}
    yield "no matrices", normal(0, 6, 6), normal(0, 6, 6, seed=1), 2, {}
    yield (
        "strided",
        with_layout(normal(3, 8, 8), "strided"),
        with_layout(normal(3, 8, 8, seed=1), "strided"),
        3,
        {},
    )
    yield "few values, many ties", normal(5, 16, 16), normal(5, 16, 16, seed=1).round(), 6, {}
    yield "all equal", normal(2, 16, 16), torch.ones_like(normal(2, 16, 16)), 5, {}
    signed = torch.zeros_like(normal(2, 8, 8))
    signed.flatten()[::2] = -0.0  # equal to 0: a tie, not a lower score
    yield "zeros of both signs", normal(2, 8, 8), signed, 3, {}
    odd = normal(4, 8, 8, seed=1)
    odd[0, :6] = -math.inf
    odd[1, :7] = math.nan
    odd[2, 3:] = math.inf
    odd[3, ::2], odd[3, 1::4] = math.nan, -math.inf
    yield "infinite and NaN", normal(4, 8, 8), odd, 5, {}
    scores = normal(4, 16, 16, seed=1)
    before = choose(normal(4, 16, 16, seed=2), 6, None)
    near = choose(scores + normal(4, 16, 16, seed=3) * 0.2, 6, None)
    yield "previous, far", normal(4, 16, 16), scores, 6, {"previous": before}
    yield "previous, near", normal(4, 16, 16), scores, 6, {"previous": near.flip(-1)}
    yield "given index", normal(4, 16, 16), scores, 6, {"index": before.flip(-1)}
