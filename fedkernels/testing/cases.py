"""Named cases of every family, as data, for the tests, `fedkernels check-kernels` and users.

A case holds sizes and options; `triple_lora_inputs` and `select_middle_inputs` turn one into the
arguments of the public function. Equal case, dtype and seed give equal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels.testing.inputs import random_tensor

__all__ = [
    "SELECT_MIDDLE_CASES",
    "TRIPLE_LORA_CASES",
    "SelectMiddleCase",
    "TripleLoraCase",
    "select_middle_inputs",
    "triple_lora_inputs",
]


@dataclass(frozen=True, slots=True)
class TripleLoraCase:
    """One call of `triple_lora_linear`.

    leading: x's shape without the last dimension. plain: T is None. in_blocks, out_blocks: the
    active blocks of `block` columns of A / rows of B, or None for a dense factor. layout: of x.
    """

    name: str
    leading: tuple[int, ...]
    in_features: int
    out_features: int
    rank: int
    bias: bool = False
    residual: bool = True
    plain: bool = False
    scale: float = 2.0
    in_blocks: tuple[int, ...] | None = None
    out_blocks: tuple[int, ...] | None = None
    block: int = 64
    layout: str = "contiguous"


@dataclass(frozen=True, slots=True)
class SelectMiddleCase:
    """One call of `select_middle`: middle and scores (*leading, size, size), `rank` rows are kept.

    scores: "normal"; "ties" (five values, so that most entries are equal); "special" (-inf, NaN and
    inf among them).
    """

    name: str
    leading: tuple[int, ...]
    size: int
    rank: int
    scores: str = "normal"


TRIPLE_LORA_CASES: tuple[TripleLoraCase, ...] = (
    TripleLoraCase("small", (8,), 16, 24, 4),
    TripleLoraCase("no-rows", (0,), 16, 24, 4),
    TripleLoraCase("one-row", (1,), 16, 24, 4),
    TripleLoraCase("vector", (), 16, 24, 4),
    TripleLoraCase("all-ones", (1,), 1, 1, 1),
    TripleLoraCase("odd", (67,), 129, 65, 5, bias=True),
    TripleLoraCase("batched", (3, 5), 96, 80, 8, bias=True),
    TripleLoraCase("four-dimensions", (2, 1, 3), 32, 40, 2),
    TripleLoraCase("wide-rank", (33,), 64, 48, 64),
    TripleLoraCase("rank-above-width", (9,), 7, 5, 11),
    TripleLoraCase("plain-lora", (19,), 72, 56, 8, plain=True, bias=True),
    TripleLoraCase("no-residual", (19,), 72, 56, 8, residual=False),
    TripleLoraCase("zero-scale", (19,), 72, 56, 8, scale=0.0),
    TripleLoraCase("in-blocks", (21,), 100, 64, 4, in_blocks=(0, 2, 6), block=16),
    TripleLoraCase("out-blocks", (21,), 64, 100, 4, out_blocks=(1, 6), block=16),
    TripleLoraCase(
        "both-blocks", (21,), 130, 70, 4, bias=True, in_blocks=(1, 8), out_blocks=(0, 4), block=16
    ),
    TripleLoraCase("strided", (34,), 48, 40, 8, layout="strided"),
    TripleLoraCase("transposed", (34,), 48, 40, 8, layout="transposed"),
    TripleLoraCase("padded", (5, 7), 48, 40, 8, layout="padded"),
    TripleLoraCase("expanded", (34,), 48, 40, 8, layout="expanded"),
    TripleLoraCase("tokens", (2, 130), 256, 384, 16, bias=True),
)

SELECT_MIDDLE_CASES: tuple[SelectMiddleCase, ...] = (
    SelectMiddleCase("one-of-one", (), 1, 1),
    SelectMiddleCase("one-of-many", (3,), 7, 1),
    SelectMiddleCase("all", (2,), 8, 8),
    SelectMiddleCase("no-matrix", (0,), 8, 4),
    SelectMiddleCase("odd", (2, 3), 13, 5),
    SelectMiddleCase("layers-and-slots", (4, 7), 16, 8),
    SelectMiddleCase("wide", (3,), 128, 16),
    SelectMiddleCase("ties", (5,), 16, 8, scores="ties"),
    SelectMiddleCase("special", (5,), 16, 8, scores="special"),
)


def triple_lora_inputs(
    case: TripleLoraCase, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """The keyword arguments of `triple_lora_linear` (without `backend`) for a case.

    Weights have the deviation 1/sqrt(fan-in), so that y is of order 1. All tensors have `dtype`.

    >>> inputs = triple_lora_inputs(TRIPLE_LORA_CASES[0])
    >>> [tuple(inputs[name].shape) for name in ("x", "weight", "A", "T", "B")]
    [(8, 16), (24, 16), (4, 16), (4, 4), (24, 4)]
    """
    seed = 10 * seed
    rank, d_in, d_out = case.rank, case.in_features, case.out_features
    in_index, a_width = _active(case.in_blocks, d_in, case.block)
    out_index, b_width = _active(case.out_blocks, d_out, case.block)

    def normal(shape: tuple[int, ...], number: int, fan_in: int, layout: str = "contiguous"):
        std = max(fan_in, 1) ** -0.5
        return random_tensor(shape, dtype=dtype, seed=seed + number, std=std, layout=layout)

    return {
        "x": normal((*case.leading, d_in), 1, 1, case.layout),
        "weight": normal((d_out, d_in), 2, d_in),
        "A": normal((rank, a_width), 3, a_width),
        "T": None if case.plain else normal((rank, rank), 4, rank),
        "B": normal((b_width, rank), 5, rank),
        "bias": normal((d_out,), 6, 1) if case.bias else None,
        "scale": case.scale,
        "residual": case.residual,
        "in_index": in_index,
        "out_index": out_index,
        "block": case.block,
    }


def select_middle_inputs(
    case: SelectMiddleCase, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """The keyword arguments of `select_middle` (without `backend`) for a case.

    >>> select_middle_inputs(SELECT_MIDDLE_CASES[1])["scores"].shape
    torch.Size([3, 7, 7])
    """
    shape = (*case.leading, case.size, case.size)
    scores = random_tensor(shape, dtype=dtype, seed=10 * seed + 2)
    if case.scores == "ties":
        scores = scores.clamp(-2, 2).round()
    elif case.scores == "special":
        pick = random_tensor(shape, dtype=torch.float64, seed=10 * seed + 3)
        for low, value in ((-0.5, float("-inf")), (-0.2, float("nan")), (0.0, float("inf"))):
            scores = torch.where((pick > low) & (pick < low + 0.1), value, scores)
    return {
        "middle": random_tensor(shape, dtype=dtype, seed=10 * seed + 1),
        "scores": scores,
        "rank": case.rank,
    }


def _active(blocks: tuple[int, ...] | None, size: int, block: int) -> tuple[Tensor | None, int]:
    """The index tensor of the active blocks, and how many columns (rows) they hold together."""
    if blocks is None:
        return None, size
    width = sum(min(size, (number + 1) * block) - number * block for number in blocks)
    return torch.tensor(blocks, dtype=torch.int64), width
