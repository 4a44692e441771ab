"""What the look-alikes share: arrays in and out, POT's iterates and potentials, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels.transport.api import sinkhorn
from fedkernels.transport.result import SinkhornResult

__all__ = ["Array", "iterate", "logarithms", "refuse", "tensors"]

Array = Any  # numpy array or torch tensor: one kind in a call, and the same kind out


def iterate(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    start: Tensor | None = None,
    grad: str = "envelope",
) -> SinkhornResult:
    """POT's iterates: from the start of its potentials, without relaxation.

    That start is what reg_type="entropy" would choose; given as init it spares a second value, and
    half of a small call's time.
    """
    if start is None:
        mass = _filled(b, a, cost.shape[-1], cost)
        start = -reg * torch.where(mass > 0, mass, 1.0).log()
    return sinkhorn(
        cost, a, b, eps=float(reg), max_iter=max_iter, tol=tol, solver="sinkhorn", grad=grad,
        init=(start, start),
    )  # fmt: skip


def _filled(mass: Tensor | None, other: Tensor | None, width: int, like: Tensor) -> Tensor:
    """The mass, detached; where it is None the other's total (or 1), spread evenly."""
    if mass is not None:
        return mass.detach()
    total = like.new_ones(1) if other is None else other.detach().sum(-1, keepdim=True)
    return (total / max(width, 1)).expand(*total.shape[:-1], width)


def logarithms(
    result: SinkhornResult, a: Tensor | None, b: Tensor | None, reg: float
) -> tuple[Tensor, Tensor]:
    """POT's (u, v): potentials over reg, masses included."""
    found = []
    for dual, mass, other in ((result.f, a, b), (result.g, b, a)):
        mass = _filled(mass, other, dual.shape[-1], dual)
        found.append((dual.double() / reg + mass.double().log()).to(dual.dtype))
    return found[0], found[1]


def tensors(op: str, **given: Array | None) -> tuple[Any, list[Any]]:
    """(how to give a tensor back, the arguments as tensors of one dtype); lists count as numpy.

    None stays None, and so does an empty list or array of masses: uniform.
    """
    first_name, first = next(iter(given.items()))
    torched = isinstance(first, Tensor)
    found: list[Tensor | None] = []
    for name, value in given.items():
        listed = isinstance(value, list | tuple)
        if listed:
            value = np.asarray(value, dtype=np.float64)
        if value is None or (name in ("a", "b") and getattr(value, "shape", None) == (0,)):
            found.append(None)
        elif isinstance(value, Tensor) and torched:
            found.append(value)
        elif isinstance(value, np.ndarray) and (listed or not torched):
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            found.append(tensor.to(first.device) if isinstance(first, Tensor) else tensor)
        else:
            raise TypeError(
                f"{op}: all arguments must be numpy arrays, or all torch tensors; {first_name} is "
                f"{type(first).__name__} and {name} {type(value).__name__}"
            )
    lead = found[0]
    assert lead is not None
    dtype = lead.dtype if lead.dtype.is_floating_point else torch.float64
    cast = [None if t is None else t.to(dtype) for t in found]
    if torched:
        return (lambda tensor: tensor), cast
    return (lambda tensor: tensor.detach().numpy()[()]), cast


def refuse(op: str, **given: tuple[Any, Any]) -> None:
    """Raises for an argument that is not its default and that nothing here would read."""
    for name, (value, default) in given.items():
        if value is not default and value != default:
            raise ValueError(f"{op}: {name}={value!r} is not supported here; leave it out")
