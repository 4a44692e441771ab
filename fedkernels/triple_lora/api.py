"""Public functions of the family: checks, backend, autograd. The mathematics is in README.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._backend import Candidate, resolve
from fedkernels._extension import is_built, why_not_built
from fedkernels.triple_lora import autograd, check, reference

_CPU_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def _cpu_why_not(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}, the kernel runs on the CPU"
    if x.dtype not in _CPU_DTYPES:
        return f"dtype {x.dtype} is not a floating type of the kernel"
    return None if is_built() else f"not built: {why_not_built()}"


def _reference_why_not(x: Tensor) -> str | None:
    return None


_CANDIDATES = (Candidate("cpu", _cpu_why_not), Candidate("reference", _reference_why_not))

# What `fedkernels info` lists: op -> the candidates, in the order in which "auto" tries them.
OPS: dict[str, tuple[Candidate, ...]] = {
    "triple_lora_linear": _CANDIDATES,
    "triple_lora_delta": _CANDIDATES,
    "select_middle": _CANDIDATES,
}


def triple_lora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    T: Tensor | None,
    B: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    residual: bool = True,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    block: int = 64,
    dropout_p: float = 0.0,
    training: bool = False,
    backend: str = "auto",
) -> Tensor:
    """A frozen or trained linear layer with a triple-matrix adapter, in one fused call.

        y = x W^T + bias + scale * dropout(x) A^T (T + residual * I)^T B^T

    Shapes: x (..., D_in), weight (D_out, D_in), A (r, D_in), T (r, r) or None (plain LoRA),
    B (D_out, r), bias (D_out,); y (..., D_out). With ``in_index`` (``out_index``), int64, sorted
    and unique, A's columns (B's rows) are the active blocks of ``block`` columns (rows) side by
    side: A (r, sum of their widths); all other columns (rows) are zero. The last block is shorter
    when ``block`` does not divide the dimension.

    Dtypes: x float32, bfloat16, float16 or float64; weight and bias the same; A, T, B the same or
    float32. y has x's dtype (autocast's under autocast); sums run in float32 or better; gradients
    come back in the dtype of their input. Saved for backward is only what the gradients that are
    asked for need: with A and weight frozen, h = x A^T (N * r elements) and not x.

    Dropout acts on the adapter's input; its mask is regenerated from a seed drawn by
    ``torch.randint`` and never stored. Second derivatives exist on ``backend="reference"`` only.

    Raises ValueError (shapes, index, range), TypeError (dtypes), BackendUnavailable.
    Source: H2Tune's adapted layer (arXiv 2507.22633); with ``T=None``, LoRA (arXiv 2106.09685).

    >>> x, weight = torch.ones(2, 4), torch.zeros(3, 4)
    >>> A, T, B = torch.ones(1, 4), torch.ones(1, 1), torch.ones(3, 1)
    >>> triple_lora_linear(x, weight, A, T, B, scale=0.5)  # 0.5 * 4 * (1 + 1) * 1
    tensor([[4., 4., 4.],
            [4., 4., 4.]])
    """
    dtype = check.linear(x, weight, A, T, B, bias, in_index, out_index, block, dropout_p, scale)
    seed = _draw_seed(x) if training and dropout_p > 0 else None
    options = (scale, residual, in_index, out_index, block, dropout_p, seed)
    if resolve("triple_lora_linear", backend, _CANDIDATES, x) == "reference":
        return _reference_linear(dtype, x, weight, A, T, B, bias, options)
    return autograd.triple_lora(dtype, x, weight, bias, None, A, T, B, weight.shape[0], options)


def triple_lora_delta(
    x: Tensor,
    A: Tensor,
    T: Tensor | None,
    B: Tensor,
    *,
    base: Tensor | None = None,
    out_features: int | None = None,
    scale: float = 1.0,
    residual: bool = True,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    block: int = 64,
    dropout_p: float = 0.0,
    training: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The adapter alone, added to the output ``base`` of a layer that stays opaque.

        y = base + scale * dropout(x) A^T (T + residual * I)^T B^T

    For a base layer whose weight is quantised or sharded. Shapes, dtypes and options as
    ``triple_lora_linear``; base (..., D_out) in x's dtype, or None for 0. ``out_features`` is
    D_out and needed only with ``out_index`` and no base. The gradient to base is the identity, and
    base is never written to.

    Raises ValueError, TypeError, BackendUnavailable.

    >>> x, A, B = torch.ones(1, 2), torch.ones(1, 2), torch.ones(3, 1)
    >>> triple_lora_delta(x, A, None, B, base=torch.tensor([[10.0, 20.0, 30.0]]))
    tensor([[12., 22., 32.]])
    """
    dtype, width = check.delta(
        x, A, T, B, base, out_features, in_index, out_index, block, dropout_p, scale
    )
    seed = _draw_seed(x) if training and dropout_p > 0 else None
    options = (scale, residual, in_index, out_index, block, dropout_p, seed)
    if resolve("triple_lora_delta", backend, _CANDIDATES, x) == "reference":
        with without_autocast(x):
            wide = None if base is None else base.to(dtype)
            return reference.triple_lora_delta(
                x.to(dtype), A, T, B, base=wide, out_features=width, **_named(options)
            )
    return autograd.triple_lora(dtype, x, None, None, base, A, T, B, width, options)


def fold_middle(
    B: Tensor, T: Tensor | None, *, scale: float = 1.0, residual: bool = True
) -> Tensor:
    """Q = scale * B (T + residual * I): the same adapter with the two factors A and Q.

    B (D_out, r), T (r, r) or None (then the middle is I); Q (D_out, r) in B's dtype, computed in
    float32 or better. Differentiable. An exact export to plain LoRA: lora_A = A and
    lora_B = B (T + I).

    Raises ValueError for shapes that do not fit.

    >>> fold_middle(torch.ones(2, 1), torch.ones(1, 1), scale=0.5)
    tensor([[1.],
            [1.]])
    """
    check.middle(T, B)
    return reference.fold_middle(B, T, scale=scale, residual=residual)


def select_middle(
    middle: Tensor,
    scores: Tensor | None,
    rank: int,
    *,
    index: Tensor | None = None,
    previous: Tensor | None = None,
    straight_through: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The rank^2 entries of each shared middle matrix that a client uses, in one call.

        index = the rank^2 largest scores;   T = middle[index], reshaped to (rank, rank)

    Shapes: middle, scores (..., R, R) -> T (..., rank, rank), index (..., rank^2) int64 into the
    flattened matrix. Largest by value, ties to the lower index, -inf below every number, NaN below
    -inf. The index is ascending; given ``previous``, every entry that stays keeps its slot and the
    newcomers fill the freed slots in ascending order. Given ``index``, nothing is selected and T
    is gathered there with the same gradients (``scores`` may then be None): a round chooses once
    and gathers at every step.

    Gradients: dmiddle[index] += dT and, with ``straight_through``, dscores[index] += dT * middle.
    Dtypes: float32, bfloat16, float16, float64. Raises ValueError, TypeError, BackendUnavailable.
    Source: H2Tune's sparsification adapter (arXiv 2507.22633).

    >>> middle = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> T, index = select_middle(middle, torch.tensor([[0.1, 0.9], [0.2, 0.3]]), 1)
    >>> T.item(), index.tolist()
    (2.0, [1])
    """
    check.selection(middle, scores, rank, index, previous)
    if resolve("select_middle", backend, _CANDIDATES, middle) == "reference":
        return reference.select_middle(
            middle, scores, rank, index=index, previous=previous, straight_through=straight_through
        )
    return autograd.select_middle(middle, scores, rank, index, previous, straight_through)


def _draw_seed(x: Tensor) -> Tensor:
    # On x's device and never read back: safe under checkpointing, compile and CUDA graphs.
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=x.device)


def _named(options: tuple) -> dict[str, Any]:
    names = ("scale", "residual", "in_index", "out_index", "block", "dropout_p", "seed")
    return dict(zip(names, options, strict=True))


def _reference_linear(dtype, x, weight, A, T, B, bias, options) -> Tensor:
    with without_autocast(x):
        bias = None if bias is None else bias.to(dtype)
        return reference.triple_lora_linear(
            x.to(dtype), weight.to(dtype), A, T, B, bias=bias, **_named(options)
        )
