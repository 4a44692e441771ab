"""The nearest prototypes of each point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels.prototype import check, ops, reference
from fedkernels.prototype.autograd import attach, finish, needs

__all__ = ["Assignment", "prototype_assign"]

CANDIDATES = candidates("prototype_assign")
_SQEUCLIDEAN, _EUCLIDEAN, _COSINE, _DOT = range(4)


@dataclass(frozen=True)
class Assignment:
    """What `prototype_assign` returns, nearest first.

    distance (N, k), differentiable; index (N, k) int64. Slots without a prototype: (inf, -1).
    """

    distance: Tensor
    index: Tensor


def prototype_assign(
    x: Tensor,
    prototypes: Tensor,
    *,
    metric: str = "sqeuclidean",
    k: int = 1,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Assignment:
    """The k prototypes nearest to each point, without an (N, K) array.

    Distances are those of `prototype_distance`, for every candidate within rounding of the nearest
    recomputed from direct differences before it is ranked: the index is that of exact differences
    also where an expansion would name a wrong one. Ties go to the lowest index.

    Shapes: x (N, D), prototypes (K, D), mask bool (K,) or (N, K), True where a prototype may be
    used; k from 1 to 32. distance and index are (N, k). Dtypes as in `prototype_distance`.
    With more slots than prototypes, or all of a row masked, a slot is (inf, -1). A NaN or +inf
    distance is never among the nearest; a row all of whose distances are NaN is (NaN, -1).
    distance is differentiable to x and prototypes (the index held fixed; at a Euclidean distance of
    0 the gradient is 0); its backward holds a few (N, k, D) arrays. Second derivatives raise, but
    on the reference.

    Raises ValueError (shapes, k out of range), TypeError (dtypes), BackendUnavailable.

    >>> x = torch.tensor([[0.0], [0.9], [5.0]])
    >>> found = prototype_assign(x, torch.tensor([[0.0], [1.0]]), k=2)
    >>> found.index.tolist()
    [[0, 1], [1, 0], [1, 0]]
    """
    x, mu, number = check.points(x, prototypes, metric)
    mask = check.mask_of(x, mu, mask)
    k = check.neighbours(k)
    name = resolve("prototype_assign", backend, CANDIDATES, x)
    if name == "reference":
        with without_autocast(x):
            return Assignment(*_reference(x, mu, mask, number, k))
    settings = ops.primitives(name), number, k
    found = attach("prototype_assign", _run, _FORMS, needs(x, mu), x, mu, mask, settings)
    return Assignment(*found)


def _reference(
    x: Tensor, mu: Tensor, mask: Tensor | None, metric: int, k: int
) -> tuple[Tensor, Tensor]:
    distance, index = reference.prototype_assign(x.detach(), mu.detach(), mask, metric, k)
    if needs(x, mu) or torch._C._are_functorch_transforms_active():
        # Once more for the pairs that were found, so that every derivative exists.
        valid, chosen = index >= 0, index.clamp(min=0).flatten()
        rows = x[:, None].expand(-1, k, -1).flatten(0, 1)
        again = reference.distance_to(rows, mu[chosen], metric).view_as(index)
        distance = torch.where(valid, again, distance)
    return distance, index


def _run(x: Tensor, mu: Tensor, mask: Tensor | None, settings: tuple[Any, int, int]) -> Any:
    op, metric, k = settings
    return op.prototype_assign(x, mu, mask, metric, k)


def _save(ctx: Any, x, mu, mask, settings, found) -> None:
    distance, index = found
    ctx.mark_non_differentiable(index)
    ctx.save_for_backward(x, mu, distance, index)
    ctx.settings = settings


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, mu, distance, index = ctx.saved_tensors
    op, metric, _ = ctx.settings
    wanted = ctx.needs_input_grad[:2]

    def gradients() -> tuple[Tensor | None, ...]:
        return _slots(op, x, mu, distance, index, grad, metric, wanted)

    return (*finish(gradients, x, grad, x, mu), None, None)


def _slots(
    op: Any,
    x: Tensor,
    mu: Tensor,
    distance: Tensor,
    index: Tensor,
    grad: Tensor,
    metric: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dmu from the (N, k) pairs that were found; each pair's share is added up."""
    # What takes no part is 0 and not multiplied by 0: its values may be anything.
    used = (index >= 0) & (grad != 0)
    chosen = torch.where(used, index, 0)
    g = torch.where(used, grad, 0.0)[..., None]
    left = torch.where(used[..., None], x.to(mu.dtype)[:, None], 0.0)
    right = torch.where(used[..., None], mu[chosen], 0.0)
    if metric == _DOT:
        to_x, to_mu = -g * right, -g * left
    elif metric == _COSINE:
        (left, one), (right, other) = _unit(left), _unit(right)
        cos = 1 - torch.where(used, distance, 1.0)[..., None]
        to_x, to_mu = g * one * (cos * left - right), g * other * (cos * right - left)
    else:
        if metric == _EUCLIDEAN:
            zero = ~used | (distance == 0)
            g = torch.where(zero[..., None], 0.0, g / torch.where(zero, 1.0, distance)[..., None])
        else:
            g = 2 * g
        to_x = g * (left - right)
        to_mu = -to_x
    dx = to_x.sum(1).to(x.dtype) if wanted[0] else None
    if not wanted[1]:
        return dx, None
    pairs, labels = to_mu.flatten(0, 1).contiguous(), chosen.flatten()
    return dx, op.class_sum(pairs, labels, None, mu.shape[0])[0]


def _unit(points: Tensor) -> tuple[Tensor, Tensor]:
    """points / |points| and 1 / |points|, 0 for a zero vector as in the forward."""
    squared = points.square().sum(-1, keepdim=True)
    zero = squared < torch.finfo(points.dtype).tiny
    inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).rsqrt())
    return points * inverse, inverse


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, mu, mask, settings):
        found = _run(x, mu, mask, settings)
        _save(ctx, x, mu, mask, settings, found)
        return found

    backward: Any = staticmethod(_backward)


class _NearestFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mu, mask, settings):
        return _run(x, mu, mask, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        x, mu, mask, settings = inputs
        _save(ctx, x, mu, mask, settings, output)

    backward: Any = staticmethod(_backward)


_FORMS = (_Nearest, _NearestFunctional)
