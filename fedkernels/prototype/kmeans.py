"""k-means: k-means++ seeding and Lloyd's iterations, reproducible to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels import _check
from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels.prototype import ops, reference
from fedkernels.prototype.check import wide
from fedkernels.prototype.seeding import fixed_order_sum, plus_plus

__all__ = ["KMeans", "kmeans"]

CANDIDATES = candidates("prototype_assign")
_SQEUCLIDEAN = 0


@dataclass(frozen=True)
class KMeans:
    """What `kmeans` returns.

    centers (k, D). index (N,) int64: the centre nearest to each row. inertia () float64: the sum of
    the squared distances to them. n_iter: the Lloyd iterations that ran.
    """

    centers: Tensor
    index: Tensor
    inertia: Tensor
    n_iter: int


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    init: str | Tensor = "k-means++",
    max_iter: int = 100,
    tol: float = 1e-4,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> KMeans:
    """Clusters the rows of x: a local minimum of sum_i min_j |x_i - c_j|^2.

    ``init``: "k-means++" (greedy: each centre is the best of 2 + log k draws) or the first centers
    (k, D). Each of Lloyd's iterations names the nearest centre of every row (ties: the lowest
    index) and moves the centres to the means of their rows. It ends when no row changes its centre,
    when the squares of the moves sum to at most ``tol`` times the mean variance of the features, or
    after ``max_iter`` iterations. A centre without rows takes the row farthest from its own centre.

    Shapes: x (N, D), 1 <= k <= N. Dtypes: x float32, bfloat16, float16 (centers float32) or float64
    (centers float64; cpu and reference). Nothing is differentiable.
    Memory: O(N + k D); "k-means++" takes N (4 + log k) numbers for its draws; never (N, k).
    Given ``generator``, or torch's own after ``torch.manual_seed``, the same bits on each run and
    for every number of threads.

    Raises ValueError (shapes, k, names, numbers out of range, x that is not finite), TypeError
    (dtypes), BackendUnavailable.
    Source: Lloyd (1982); Arthur and Vassilvitskii (2007). The rules of ``tol`` and ``n_iter`` are
    scikit-learn's, so that the same first centers give the same iterations.

    >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> result = kmeans(x, 2, init=torch.tensor([[0.0], [1.0]]))
    >>> result.centers.flatten().tolist(), result.index.tolist(), result.inertia.item()
    ([0.5, 10.5], [0, 0, 1, 1], 1.0)
    """
    _check_arguments(x, k, init, max_iter, tol, generator)
    name = resolve("kmeans", backend, CANDIDATES, x)
    op: Any = reference if name == "reference" else ops.primitives(name)
    with without_autocast(x):
        x = x.contiguous()
        variance = _mean_variance(op, x)
        if isinstance(init, Tensor):
            centers = init.to(wide(x)).contiguous()
        else:
            centers = x[plus_plus(op, x, k, generator).to(x.device)].to(wide(x))
        return _lloyd(op, x, centers, max_iter, tol * variance)


def _lloyd(op: Any, x: Tensor, centers: Tensor, max_iter: int, most: float) -> KMeans:
    k = centers.shape[0]
    before: Tensor | None = None
    n_iter = 0
    while True:
        n_iter += 1
        distance, index = _nearest(op, x, centers)
        total, _, count, _ = op.class_sum(x, index, None, k)
        repaired = not bool(count.all())
        if repaired:
            total, count = _repaired(op, x, distance, index, total, count)
        moved = torch.where((count > 0)[:, None], total / count[:, None].clamp(min=1), centers)
        settled = before is not None and not repaired and torch.equal(index, before)
        shift = float((moved - centers).double().square().sum())
        centers, before = moved, index
        if settled:  # the same rows: the centres are where they were
            break
        if shift <= most or n_iter == max_iter:
            distance, index = _nearest(op, x, centers)
            break
    return KMeans(centers, index, fixed_order_sum(distance), n_iter)


def _nearest(op: Any, x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance to the nearest centre, and which it is, (N,) each."""
    distance, index = op.prototype_assign(x, centers, None, _SQEUCLIDEAN, 1)
    return distance.view(-1), index.view(-1)


def _repaired(op: Any, x, distance, index, total, count) -> tuple[Tensor, Tensor]:
    """The sums with the farthest rows given to the centres that have none, in order.

    Rows at their own centre stay (there are fewer distinct rows than centres), and no centre gives
    its last row away.
    """
    empty = (count == 0).nonzero()[:, 0].tolist()
    sizes, owner = count.tolist(), index.clone()
    # Of the farthest rows, at most one for each centre has to stay.
    far = torch.sort(distance, descending=True, stable=True)
    squares, rows = (t[: len(empty) + len(sizes)].tolist() for t in far)
    for row, square in zip(rows, squares, strict=True):
        if not empty or not square > 0:
            break
        if sizes[int(index[row])] > 1:
            sizes[int(index[row])] -= 1
            owner[row] = empty.pop(0)
    if torch.equal(owner, index):
        return total, count
    total, _, count, _ = op.class_sum(x, owner, None, count.shape[0])
    return total, count


def _mean_variance(op: Any, x: Tensor) -> float:
    """The variance of a feature, averaged over the features; raises where x is not finite."""
    rows, width = x.shape
    whole = torch.zeros(rows, dtype=torch.int64, device=x.device)
    mean = op.class_sum(x, whole, None, 1)[0] / rows
    distance, _ = _nearest(op, x, mean)
    total = float(fixed_order_sum(distance))
    if not math.isfinite(total):
        wrong = (~x.isfinite()).any(1).nonzero()
        if len(wrong):
            raise ValueError(f"x must be finite, row {int(wrong[0])} holds NaN or infinity")
        raise ValueError(f"x is too large: squares of its distances overflow {mean.dtype}")
    return total / (rows * max(width, 1))


def _check_arguments(x, k, init, max_iter, tol, generator) -> None:
    """One line for what is wrong."""
    _check.tensor("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must be (N, D), got {_check.shape(x)}")
    _check.floating("x", x)
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one row, got {_check.shape(x)}")
    for name, value in (("k", k), ("max_iter", max_iter)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 1 <= k <= x.shape[0]:
        raise ValueError(f"k must lie between 1 and the {x.shape[0]} rows of x, got {k}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    _check.number("tol", tol)
    if not 0.0 <= tol < math.inf:
        raise ValueError(f"tol must be finite and at least 0, got {tol}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if not isinstance(init, Tensor):
        if init != "k-means++":
            raise ValueError(f"init must be k-means++ or a (k, D) tensor; got {init!r}")
        return
    _check.tensor("init", init)
    if init.shape != (k, x.shape[1]):
        raise ValueError(f"init must be ({k}, {x.shape[1]}), got {_check.shape(init)}")
    _check.floating("init", init)
    _check.same_device(x, "x", "init", init)
    if not bool(init.isfinite().all()):
        raise ValueError("init must be finite")
