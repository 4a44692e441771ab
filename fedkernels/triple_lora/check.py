"""Argument checks of the family: one line that names what, what was expected and what was received.

They stand here and not behind the ops, because an error raised behind the stable ABI loses its
cause. Contents of an index are looked at on the CPU in eager mode only: elsewhere that would
synchronise the device or break a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear(x, weight, A, T, B, bias, in_index, out_index, block, dropout_p, scale) -> torch.dtype:
    """Checks triple_lora_linear; returns the dtype of the computation."""
    _tensors(x=x, weight=weight, A=A, T=T, B=B, bias=bias, in_index=in_index, out_index=out_index)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "x must be (..., D_in) and weight (D_out, D_in), "
            f"got x {_shape(x)} and weight {_shape(weight)}"
        )
    dtype = _compute(x, (("weight", weight), ("bias", bias)))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {_shape(bias)}")
    _factors(x, A, T, B, weight.shape[0], in_index, out_index, block, dtype)
    _scalars(dropout_p, scale)
    return dtype


def delta(
    x, A, T, B, base, out_features, in_index, out_index, block, dropout_p, scale
) -> tuple[torch.dtype, int]:
    """Checks triple_lora_delta; returns the dtype of the computation and D_out."""
    _tensors(x=x, A=A, T=T, B=B, base=base, in_index=in_index, out_index=out_index)
    if x.dim() < 1:
        raise ValueError(f"x must be (..., D_in), got {_shape(x)}")
    if B.dim() != 2:
        raise ValueError(f"B must be (D_out, r), got {_shape(B)}")
    if base is not None:
        if base.shape[:-1] != x.shape[:-1] or base.dim() != x.dim():
            raise ValueError(
                f"base must be (..., D_out) with x's leading shape, got x {_shape(x)} "
                f"and base {_shape(base)}"
            )
        width = base.shape[-1]
        if out_features is not None and out_features != width:
            raise ValueError(f"out_features is {out_features}, but base has {width} columns")
    elif out_index is not None:
        if out_features is None:
            raise ValueError("out_index without base needs out_features, the number of columns")
        width = out_features
    else:
        width = B.shape[0] if out_features is None else out_features
    dtype = _compute(x, (("base", base),))
    _factors(x, A, T, B, width, in_index, out_index, block, dtype)
    _scalars(dropout_p, scale)
    return dtype, width


def middle(T: Tensor | None, B: Tensor) -> None:
    """Checks fold_middle."""
    _tensors(B=B, T=T)
    if B.dim() != 2:
        raise ValueError(f"B must be (D_out, r), got {_shape(B)}")
    if B.dtype not in _FLOATS:
        raise TypeError(f"B must be a floating tensor, got {B.dtype}")
    if T is None:
        return
    rank = B.shape[1]
    if T.shape != (rank, rank):
        raise ValueError(f"T must be ({rank}, {rank}) to fit B {_shape(B)}, got {_shape(T)}")
    if T.dtype != B.dtype and (T.dtype != torch.float32 or B.dtype == torch.float64):
        raise TypeError(f"T must have B's dtype {B.dtype} or be float32, got {T.dtype}")
    if T.device != B.device:
        raise ValueError(f"T must be on B's device {B.device}, got {T.device}")


def selection(middle, scores, rank, index, previous) -> None:
    """Checks select_middle."""
    _tensors(middle=middle, scores=scores)
    if not isinstance(rank, int):
        raise TypeError(f"rank must be an int, got {type(rank).__name__}")
    if middle.dim() < 2 or middle.shape[-1] != middle.shape[-2]:
        raise ValueError(f"middle must be (..., R, R), got {_shape(middle)}")
    if middle.dtype not in _FLOATS:
        raise TypeError(f"middle must be a floating tensor, got {middle.dtype}")
    size = middle.shape[-1]
    if not 1 <= rank <= size:
        raise ValueError(f"rank must be between 1 and R = {size}, got {rank}")
    if scores is None:
        if index is None:
            raise ValueError("select_middle needs scores, or an index to gather at")
    else:
        if scores.shape != middle.shape:
            raise ValueError(
                f"scores must have middle's shape {_shape(middle)}, got {_shape(scores)}"
            )
        if scores.dtype not in _FLOATS:
            raise TypeError(f"scores must be a floating tensor, got {scores.dtype}")
        _same_device(middle, "scores", scores)
    if index is not None and previous is not None:
        raise ValueError("give index (gather there) or previous (select anew), not both")
    for name, given in (("index", index), ("previous", previous)):
        if given is None:
            continue
        expected = (*middle.shape[:-2], rank * rank)
        if given.dtype != torch.int64 or tuple(given.shape) != expected:
            raise ValueError(
                f"{name} must be int64 of shape {expected}, got {given.dtype} {_shape(given)}"
            )
        _same_device(middle, name, given)
        if (
            _readable(given)
            and given.numel()
            and not 0 <= int(given.min()) <= int(given.max()) < (size * size)
        ):
            raise ValueError(f"{name} must lie in [0, {size * size}), the entries of (R, R)")


def _tensors(**given: Tensor | None) -> None:
    for name, value in given.items():
        if value is None and name in ("T", "bias", "base", "scores", "in_index", "out_index"):
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got {value.layout}")


def _compute(x: Tensor, same: tuple[tuple[str, Tensor | None], ...]) -> torch.dtype:
    """x's dtype, or autocast's; the named tensors must have it or be cast to it by autocast."""
    dtype, device = x.dtype, x.device.type
    if dtype not in _FLOATS:
        raise TypeError(f"x must be float32, bfloat16, float16 or float64, got {dtype}")
    autocast = not x.is_meta and torch.is_autocast_enabled(device) and dtype != torch.float64
    for name, tensor in same:
        if tensor is None:
            continue
        if tensor.dtype != dtype and not (autocast and tensor.is_floating_point()):
            raise TypeError(f"{name} must have x's dtype {dtype}, got {tensor.dtype}")
        _same_device(x, name, tensor)
    return torch.get_autocast_dtype(device) if autocast else dtype


def _factors(x, A, T, B, width, in_index, out_index, block, dtype) -> None:
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise ValueError(
            f"A must be (r, D_in) and B (D_out, r), got A {_shape(A)} and B {_shape(B)}"
        )
    rank = A.shape[0]
    if T is not None and T.shape != (rank, rank):
        raise ValueError(f"T must be ({rank}, {rank}) to fit A {_shape(A)}, got {_shape(T)}")
    for name, tensor in (("A", A), ("T", T), ("B", B)):
        if tensor is None:
            continue
        if tensor.dtype != dtype and (tensor.dtype != torch.float32 or dtype == torch.float64):
            accepted = dtype if dtype in (torch.float32, torch.float64) else f"{dtype} or float32"
            raise TypeError(f"{name} must be {accepted} to go with x, got {tensor.dtype}")
        _same_device(x, name, tensor)
    inner = x.shape[-1]
    expected = inner if in_index is None else _covered("in_index", in_index, block, inner, x)
    if expected is not None and A.shape[1] != expected:
        note = "" if in_index is None else " (the widths of the active blocks)"
        raise ValueError(f"A must be ({rank}, {expected}){note}, got {_shape(A)}")
    expected = width if out_index is None else _covered("out_index", out_index, block, width, x)
    if expected is not None and B.shape[0] != expected:
        note = "" if out_index is None else " (the widths of the active blocks)"
        raise ValueError(f"B must be ({expected}, {rank}){note}, got {_shape(B)}")


def _covered(name: str, index: Tensor, block: int, dim: int, x: Tensor) -> int | None:
    """Number of columns that the active blocks cover; None where it cannot be known."""
    if not isinstance(block, (int, torch.SymInt)):
        raise TypeError(f"block must be an int, got {type(block).__name__}")
    if not 1 <= block < 2**31:
        raise ValueError(f"block must be at least 1 and below 2^31, got {block}")
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"{name} must be a 1-D int64 tensor, got {index.dtype} {_shape(index)}")
    _same_device(x, name, index)
    blocks = -(-dim // block)
    count = index.numel()
    if not _readable(index):
        # Whether the short last block is among them is known to the contents alone.
        return count * block if dim % block == 0 else None
    if count == 0:
        return 0
    if int(index[0]) < 0 or int(index[-1]) >= blocks or not bool((index[1:] > index[:-1]).all()):
        raise ValueError(
            f"{name} must be sorted, unique and within [0, {blocks}), the blocks of {block} "
            f"in {dim}; got {index.tolist() if count <= 8 else f'{count} entries'}"
        )
    short = dim - (blocks - 1) * block if int(index[-1]) == blocks - 1 else block
    return (count - 1) * block + short


def _scalars(dropout_p: float, scale: float) -> None:
    for name, value in (("dropout_p", dropout_p), ("scale", scale)):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be between 0 and 1, got {dropout_p}")


def _same_device(x: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")


def _readable(index: Tensor) -> bool:
    return (
        index.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
