"""Argument checks of the Sinkhorn functions: one line that names what, expected what, got what.

They stand here and not behind the ops, because an error raised behind the stable ABI loses its
cause. Contents (sizes, a tensor eps) are looked at on the CPU in eager mode only: elsewhere that
would synchronise the device or break a graph, and the kernel answers with a status instead.
Contents of costs and masses never raise: one bad problem must not take its batch with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from fedkernels._check import (
    FLOATS,
    INTEGERS,
    choice,
    floating,
    number,
    readable,
    same_device,
    shape,
    tensor,
)

__all__ = ["METRICS", "cost_matrix", "masses", "options", "points", "rho_pair"]

METRICS = ("sqeuclidean", "euclidean", "cosine")


def cost_matrix(cost: Tensor) -> None:
    tensor("cost", cost)
    if cost.dim() not in (2, 3):
        raise ValueError(f"cost must be (n, m) or (B, n, m), got {shape(cost)}")
    floating("cost", cost)


def points(x: Tensor, y: Tensor, metric: str) -> int:
    """Checks the two clouds; returns the metric's number."""
    for name, cloud in (("x", x), ("y", y)):
        tensor(name, cloud)
        if cloud.dim() not in (2, 3):
            raise ValueError(f"{name} must be (n, D) or (B, n, D), got {shape(cloud)}")
        floating(name, cloud)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must have the same D, got x {shape(x)} and y {shape(y)}")
    if x.dtype != y.dtype:
        raise TypeError(f"y must have x's dtype {x.dtype}, got {y.dtype}")
    same_device(x, "x", "y", y)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    return METRICS.index(metric)


def masses(
    first: Tensor,
    owner: str,
    n: int,
    m: int,
    *,
    a: Tensor | None,
    b: Tensor | None,
    eps: float | Tensor,
    sizes: Tensor | None,
    g0: Tensor | None,
) -> None:
    """Shapes, dtypes and devices of everything beside the cost or the points (``first``)."""
    for name, mass, size in (("a", a, n), ("b", b, m)):
        if mass is not None:
            _row(first, owner, name, mass, size)
    if g0 is not None:
        _row(first, owner, "init's g", g0, m)
    _check_eps(first, owner, eps)
    if sizes is not None:
        _check_sizes(first, owner, sizes, n, m)


def batch_of(leading: Iterable[tuple[str, int]]) -> int:
    """The number of problems: leading dimensions are equal, or 1 (shared by all)."""
    batch, source = 1, ""
    for name, size in leading:
        if size != 1:
            if batch != 1 and size != batch:
                raise ValueError(
                    f"{source} holds {batch} problems and {name} {size}: the leading dimensions "
                    "must be equal, or 1"
                )
            batch, source = size, name
    return batch


def options(
    *,
    max_iter: int,
    tol: float,
    solver: str,
    reg_type: str,
    grad: str,
    rho: tuple[float, float],
) -> None:
    if not isinstance(max_iter, int) or isinstance(max_iter, bool):
        raise TypeError(f"max_iter must be an int, got {type(max_iter).__name__}")
    if not 1 <= max_iter < 2**31:
        raise ValueError(f"max_iter must be at least 1 and below 2^31, got {max_iter}")
    number("tol", tol)
    if not 0.0 <= tol < math.inf:
        raise ValueError(f"tol must be finite and at least 0, got {tol}")
    choice("solver", solver, ("auto", "sinkhorn", "sor"))
    choice("reg_type", reg_type, ("kl", "entropy"))
    choice("grad", grad, ("envelope", "implicit"))
    balanced = math.isinf(rho[0]) and math.isinf(rho[1])
    if not balanced and solver == "sor":
        raise ValueError('solver "sor" is for balanced problems: leave rho out, or use "sinkhorn"')
    if not balanced and reg_type == "entropy":
        raise ValueError('reg_type "entropy" is for balanced problems: leave rho out, or use "kl"')


def rho_pair(rho: float | tuple[float | None, float | None] | None) -> tuple[float, float]:
    """(rho_a, rho_b), inf for a balanced side."""
    if rho is None:
        return math.inf, math.inf
    pair = tuple(rho) if isinstance(rho, tuple | list) else (rho, rho)
    if len(pair) != 2:
        raise ValueError(f"rho must be a number or a pair (rho_a, rho_b), got {len(pair)} entries")
    sides = []
    for side in pair:
        if side is not None:
            number("rho", side)
            if not side > 0.0:
                raise ValueError(f"rho must be positive, or None for a balanced side; got {side}")
        sides.append(math.inf if side is None else float(side))
    return sides[0], sides[1]


def _check_eps(first: Tensor, owner: str, eps: float | Tensor) -> None:
    if not isinstance(eps, Tensor):
        number("eps", eps)
        if not 0.0 < eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {eps}")
        return
    if eps.dim() > 1 or not eps.is_floating_point():
        raise ValueError(
            f"eps must be a number or a floating (B,) tensor, got {eps.dtype} {shape(eps)}"
        )
    same_device(first, owner, "eps", eps)
    if readable(eps):
        values = eps.detach()
        if not bool(((values > 0) & values.isfinite()).all()):
            raise ValueError("eps must be positive and finite in every problem")


def _check_sizes(first: Tensor, owner: str, sizes: Tensor, n: int, m: int) -> None:
    tensor("sizes", sizes)
    if sizes.dtype not in INTEGERS:
        raise TypeError(f"sizes must be an integer tensor, got {sizes.dtype}")
    if sizes.dim() not in (1, 2) or sizes.shape[-1] != 2:
        raise ValueError(f"sizes must be (B, 2), got {shape(sizes)}")
    same_device(first, owner, "sizes", sizes)
    if readable(sizes) and sizes.numel():
        rows, columns = sizes[..., 0], sizes[..., 1]
        if int(sizes.min()) < 0 or int(rows.max()) > n or int(columns.max()) > m:
            raise ValueError(
                f"sizes must lie in the block ({n}, {m}), got up to "
                f"({int(rows.max())}, {int(columns.max())}) and down to {int(sizes.min())}"
            )


def _row(first: Tensor, owner: str, name: str, row: Tensor, size: int) -> None:
    tensor(name, row)
    if row.dim() not in (1, 2) or row.shape[-1] != size:
        raise ValueError(f"{name} must be ({size},) or (B, {size}), got {shape(row)}")
    if row.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating tensor, got {row.dtype}")
    same_device(first, owner, name, row)
