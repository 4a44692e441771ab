"""Triple-matrix LoRA in plain PyTorch: the specification that every kernel is held to.

    y = x W^T + bias + s * dropout(x) A^T M^T B^T,      M = T + I

(M = T, if ``residual`` is false; I, if T is None.) Everything is computed in float32 (float64 for
float64 input) and rounded once to x's dtype. Forward functions are ordinary differentiable PyTorch,
so higher derivatives exist here and only here; ``triple_lora_backward`` is the same gradient
written out, the form that the kernels implement.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Philox4x32 (Salmon et al., SC 2011): multipliers and Weyl key increments.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 7
_WORD = 0xFFFFFFFF


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything below."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_columns(index: Tensor, block: int, dim: int) -> Tensor:
    """Positions covered by the active blocks ``index``; the last block of ``dim`` may be shorter.

    >>> block_columns(torch.tensor([0, 2]), 4, 10).tolist()
    [0, 1, 2, 3, 8, 9]
    """
    block = min(block, max(dim, 1))
    positions = (index[:, None] * block + torch.arange(block, device=index.device)).flatten()
    return positions[positions < dim]


def _mul_high_low(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * word, without leaving the range of int64."""
    low, high = constant & 0xFFFF, constant >> 16
    partial = low * word + ((high * word & 0xFFFF) << 16)
    return (high * word >> 16) + (partial >> 32), partial & _WORD


def philox(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Philox4x32-7: four words of 32 bits (held in int64) for each counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _mul_high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _mul_high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return [c0, c1, c2, c3]


def dropout_factor(seed: Tensor, rows: int, columns: int, p: float) -> Tensor:
    """The (rows, columns) factor of dropout: 0 or 65536 / (65536 - t), t = round(65536 p).

    Counter (d // 8, n low, n high, 0), key = low and high word of ``seed``; column d reads the
    16-bit slice d % 8, low half of word 0 first, and is kept if and only if slice >= t.
    """
    threshold = round(65536 * p)
    device = seed.device
    if threshold >= 65536:
        return torch.zeros(rows, columns, dtype=torch.float64, device=device)
    value = int(seed)
    groups = torch.arange((columns + 7) // 8, device=device).expand(rows, -1)
    n = torch.arange(rows, device=device)[:, None].expand_as(groups)
    zero = torch.zeros_like(groups)
    words = philox((value & _WORD, value >> 32 & _WORD), (groups, n & _WORD, n >> 32, zero))
    slices = torch.stack([part for word in words for part in (word & 0xFFFF, word >> 16)], -1)
    keep = slices.flatten(1)[:, :columns] >= threshold
    return keep.double() * (65536 / (65536 - threshold))


def _middle(T: Tensor | None, residual: bool, rank: int, like: Tensor) -> Tensor:
    identity = torch.eye(rank, dtype=like.dtype, device=like.device)
    if T is None:
        return identity
    return T.to(like.dtype) + identity if residual else T.to(like.dtype)


def fold_middle(
    B: Tensor, T: Tensor | None, *, scale: float = 1.0, residual: bool = True
) -> Tensor:
    """Q = scale * B (T + residual * I), computed in float32 or better, in B's dtype."""
    wide = B.to(compute_dtype(B.dtype))
    return (scale * (wide @ _middle(T, residual, B.shape[1], wide))).to(B.dtype)


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
    seed: Tensor | None = None,
) -> Tensor:
    """base + s * dropout(x) A^T M^T B^T in x's dtype; x (..., D_in) -> (..., D_out)."""
    dtype = compute_dtype(x.dtype)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(dtype)
    if seed is not None:
        rows = rows * dropout_factor(seed, len(rows), x.shape[-1], dropout_p).to(dtype)
    if in_index is not None:
        rows = rows[:, block_columns(in_index, block, x.shape[-1])]
    wide = B.to(dtype)
    folded = scale * (wide @ _middle(T, residual, A.shape[0], wide))
    delta = (rows @ A.to(dtype).T) @ folded.T
    if out_index is not None:
        width = base.shape[-1] if base is not None else out_features
        assert width is not None  # api.py asks for it where there is no base
        columns = block_columns(out_index, block, width)
        delta = delta.new_zeros(len(rows), width).index_copy(1, columns, delta)
    delta = delta.reshape(*x.shape[:-1], delta.shape[-1])
    return (delta if base is None else base.to(dtype) + delta).to(x.dtype)


def triple_lora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    T: Tensor | None,
    B: Tensor,
    *,
    bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """x W^T + bias + the delta of ``triple_lora_delta`` (same options), rounded once."""
    dtype = compute_dtype(x.dtype)
    base = x.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        base = base + bias.to(dtype)
    # float32 all the way: the half input is widened here so that the sum is rounded once.
    return triple_lora_delta(x.to(dtype), A, T, B, base=base, **options).to(x.dtype)


def triple_lora_backward(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    T: Tensor | None,
    B: Tensor,
    *,
    weight: Tensor | None = None,
    scale: float = 1.0,
    residual: bool = True,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    block: int = 64,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> dict[str, Tensor | None]:
    """The gradient written out, for 2-D ``grad`` (N, D_out) and ``x`` (N, D_in).

    With h = x A^T and Q = s B M, r-sized products carry everything (lora.md 0.6):
        dh = g Q    dQ = g^T h    dx = g W + dh A    dA = dh^T x    dT = s B^T dQ    dB = s dQ M^T
    """
    dtype = compute_dtype(x.dtype)
    g, rows, A_, B_ = (t.to(dtype) for t in (grad, x, A, B))
    factor = None
    if seed is not None:
        factor = dropout_factor(seed, len(x), x.shape[-1], dropout_p).to(dtype)
        rows = rows * factor
    active = g
    if in_index is not None:
        rows = rows[:, block_columns(in_index, block, x.shape[-1])]
    if out_index is not None:
        active = g[:, block_columns(out_index, block, grad.shape[-1])]
    middle = _middle(T, residual, A.shape[0], A_)
    folded = scale * (B_ @ middle)
    h, dh = rows @ A_.T, active @ folded
    dQ = active.T @ h
    dx = dh @ A_
    if in_index is not None:
        columns = block_columns(in_index, block, x.shape[-1])
        dx = dx.new_zeros(x.shape).index_copy(1, columns, dx)
    if factor is not None:
        dx = dx * factor
    if weight is not None:
        dx = dx + g @ weight.to(dtype)
    return {
        "x": dx.to(x.dtype),
        "A": (dh.T @ rows).to(A.dtype),
        "T": None if T is None else (scale * (B_.T @ dQ)).to(T.dtype),
        "B": (scale * (dQ @ middle.T)).to(B.dtype),
        "weight": None if weight is None else (g.T @ x.to(dtype)).to(weight.dtype),
        "bias": g.sum(0).to(x.dtype),
    }


class _StraightThrough(torch.autograd.Function):
    """T = m; backward: dT to m and dT * m to the scores. Built of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, scores: Tensor) -> Tensor:
        return m.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        m, scores = inputs
        ctx.save_for_backward(m)
        ctx.dtype = scores.dtype

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        (m,) = ctx.saved_tensors
        return grad, (grad * m).to(ctx.dtype)


def choose(scores: Tensor, rank: int, previous: Tensor | None = None) -> Tensor:
    """Index (..., rank^2) of the rank^2 largest scores, ties to the lower index.

    -inf ranks below every number, NaN below -inf. Ascending; or, given ``previous``, entries that
    stay keep their slot and the newcomers fill the freed slots in ascending order.
    """
    lead, count = scores.shape[:-2], rank * rank
    flat = scores.reshape(lead.numel(), scores.shape[-1] ** 2)
    nan = flat.isnan()
    values = flat.masked_fill(nan, float("-inf"))
    order = values.sort(dim=-1, descending=True, stable=True).indices
    nan_last = nan.gather(-1, order).to(torch.int8).sort(dim=-1, stable=True).indices
    index = order.gather(-1, nan_last)[:, :count].sort(dim=-1).values
    if previous is None:
        return index.reshape(*lead, count)
    slots = previous.reshape(lead.numel(), count).clone()
    for row, chosen in zip(slots, index, strict=True):
        ordered = row.sort(stable=True)
        freed = ~torch.isin(row, chosen)
        # An entry that `previous` names twice keeps its first slot.
        freed[ordered.indices[1:]] |= ordered.values[1:] == ordered.values[:-1]
        row[freed] = chosen[~torch.isin(chosen, row)]
    return slots.reshape(*lead, count)


def select_middle(
    middle: Tensor,
    scores: Tensor | None,
    rank: int,
    *,
    index: Tensor | None = None,
    previous: Tensor | None = None,
    straight_through: bool = True,
) -> tuple[Tensor, Tensor]:
    """T (..., rank, rank) = middle at the chosen entries, and their flat index (..., rank^2)."""
    if index is None:
        assert scores is not None  # api.py asks for scores where there is no index
        index = choose(scores.detach(), rank, previous)
    flat = middle.flatten(-2)
    T = flat.gather(-1, index)
    if straight_through and scores is not None:
        T = _StraightThrough.apply(T, scores.reshape(flat.shape).gather(-1, index))
    return T.reshape(*index.shape[:-1], rank, rank), index
