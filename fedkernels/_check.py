"""Argument checks that families share: one line that names what, expected what, got what.

They stand before the ops and not behind them, because an error raised behind the stable ABI loses
its cause. Contents are looked at on the CPU in eager mode only: elsewhere that would synchronise
the device or break a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "INTEGERS",
    "choice",
    "floating",
    "number",
    "readable",
    "same_device",
    "shape",
    "tensor",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def readable(tensor: Tensor) -> bool:
    """Whether its contents can be looked at without a sync or a break in a graph."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {value.layout}")


def floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def same_device(first: Tensor, owner: str, name: str, tensor: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(f"{name} must be on {owner}'s device {first.device}, got {tensor.device}")


def shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
