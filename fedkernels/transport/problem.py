"""The arguments of a Sinkhorn call as the primitives take them, and what was solved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels.transport import check

__all__ = ["Problem", "Settings", "State", "build", "valid"]


@dataclass(frozen=True)
class Settings:
    """What is no tensor. metric is None for a cost matrix."""

    op: Any  # the primitives of a backend
    metric: int | None
    rho: tuple[float, float]
    entropy: bool
    implicit: bool

    @property
    def balanced(self) -> bool:
        return math.isinf(self.rho[0]) and math.isinf(self.rho[1])


@dataclass(frozen=True)
class Problem:
    """The tensors of a call: contiguous, in the dtype of the computation, with a leading B or 1.

    left is the cost (then right is None) or x, right is y.
    """

    left: Tensor
    right: Tensor | None
    a: Tensor | None
    b: Tensor | None
    eps: Tensor
    sizes: Tensor | None
    g0: Tensor | None
    batch: int
    single: bool  # nothing had a leading B, so the results have none


@dataclass(frozen=True)
class State:
    """What the primitive returned, in its order; no gradient flows through it."""

    value: Tensor
    linear: Tensor
    f: Tensor
    g: Tensor
    u: Tensor
    v: Tensor
    r: Tensor
    c: Tensor
    n_iter: Tensor
    error: Tensor
    status: Tensor


def build(
    left: Tensor,
    right: Tensor | None,
    *,
    a: Tensor | None,
    b: Tensor | None,
    eps: float | Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
    entropy: bool,
) -> Problem:
    """Brings checked arguments into the primitives' form; differentiable.

    Raises ValueError if the leading dimensions differ.
    """
    owner = "cost" if right is None else "x"
    n, m = left.shape[-2:] if right is None else (left.shape[-2], right.shape[-2])
    check.masses(left, owner, n, m, a=a, b=b, eps=eps, sizes=sizes, g0=g0)
    dtype = torch.float64 if left.dtype == torch.float64 else torch.float32
    leading = [
        (name, tensor.shape[0])
        for name, tensor, dims in (
            (owner, left, 3),
            ("y", right, 3),
            ("a", a, 2),
            ("b", b, 2),
            ("eps", eps if isinstance(eps, Tensor) else None, 1),
            ("sizes", sizes, 2),
            ("init", g0, 2),
        )
        if tensor is not None and tensor.dim() == dims
    ]
    batch = check.batch_of(leading)

    def rows(tensor: Tensor | None, dims: int) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor if tensor.dim() == dims else tensor.unsqueeze(0)
        return tensor.to(dtype).contiguous()

    if isinstance(eps, Tensor):
        eps = eps.double().reshape(-1)
    else:
        eps = torch.full((1,), float(eps), dtype=torch.float64, device=left.device)
    if sizes is not None:
        sizes = sizes.to(torch.int64).expand(batch, 2).contiguous()
    left_rows = rows(left, 3)
    assert left_rows is not None
    a, b = rows(a, 2), rows(b, 2)
    if g0 is not None:
        g0 = rows(g0.detach(), 2)
    elif entropy:
        g0 = _entropy_start(a, b, eps.detach(), sizes, n, m).to(dtype)
    return Problem(
        left=left_rows,
        right=rows(right, 3),
        a=a,
        b=b,
        eps=eps,
        sizes=sizes,
        g0=g0,
        batch=batch,
        single=not leading,
    )


def valid(sizes: Tensor | None, side: int, extent: int) -> Tensor | None:
    """(B, extent) bool, the rows (side 0) or columns (1) of each problem; None: all."""
    if sizes is None:
        return None
    return torch.arange(extent, device=sizes.device) < sizes[:, side, None]


def total(mass: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of each problem's masses in double, (B|1, 1); the padding may hold anything."""
    wide = mass.double()
    if mask is not None:
        wide = torch.where(mask, wide, 0.0)
    return wide.sum(1, keepdim=True)


def _entropy_start(
    a: Tensor | None, b: Tensor | None, eps: Tensor, sizes: Tensor | None, n: int, m: int
) -> Tensor:
    """g = -eps log b: the start of the iteration whose potentials leave the masses out."""
    if b is not None:
        b = b.detach().double()
    else:
        columns = valid(sizes, 1, m)
        count = m if columns is None else columns.sum(1, keepdim=True)
        whole = torch.ones_like(eps)[:, None]
        if a is not None:
            whole = total(a.detach(), valid(sizes, 0, n))
        b = (whole / count).expand(-1, m)
    # A zero or negative mass has no logarithm: it starts from 0 and is dealt with as in "kl".
    return -eps[:, None] * torch.where(b > 0, b, 1.0).log()
