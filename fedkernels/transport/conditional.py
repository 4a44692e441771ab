"""Conditional transport between two sets of points: one pass, no iteration, no (N, M) matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedkernels import _check as check
from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels._second_derivative import once, refuse_compiled_transforms
from fedkernels.transport import ops, reference
from fedkernels.transport.ops.conditional import NEED_P, NEED_Q, NEED_X, NEED_Y

__all__ = ["ConditionalTransport", "conditional_transport"]

COSTS = ("cosine", "sqeuclidean")
LOGITS = ("dot", "cosine", "neg_cost")
CANDIDATES = candidates("conditional_transport_forward")
_NO_SECOND = (
    "fedkernels: the compiled kernels have no second derivative; "
    'pass backend="reference" to differentiate twice'
)


@dataclass(frozen=True)
class ConditionalTransport:
    """What `conditional_transport` returns; every field is differentiable to x, y, p and q.

    value () = rho * forward + (1 - rho) * backward. forward () = sum_i p_i row_cost_i, backward ()
    = sum_j q_j col_cost_j. row_cost (N,), col_cost (M,): the cost that a point expects. row_lse
    (N,) = log sum_j q_j exp(s_ij), col_lse (M,) = log sum_i p_i exp(s_ij): then
    pi(j|i) = q_j exp(s_ij - row_lse_i). All with a leading B for batched points.
    """

    value: Tensor
    forward: Tensor
    backward: Tensor
    row_cost: Tensor
    col_cost: Tensor
    row_lse: Tensor
    col_lse: Tensor


def conditional_transport(
    x: Tensor,
    y: Tensor,
    *,
    p: Tensor | None = None,
    q: Tensor | None = None,
    cost: str = "cosine",
    logits: str = "dot",
    temperature: float = 1.0,
    rho: float = 0.5,
    backend: str = "auto",
) -> ConditionalTransport:
    """Bidirectional expected cost under softmax plans, fused over all pairs.

        pi(j|i) = softmax_j(s_ij + log q_j)        forward  = sum_i p_i sum_j pi(j|i) c_ij
        pi(i|j) = softmax_i(s_ij + log p_i)        backward = sum_j q_j sum_i pi(i|j) c_ij
        value   = rho * forward + (1 - rho) * backward

    cost: "cosine" (c = 1 - cos) or "sqeuclidean" (c = |x_i - y_j|^2). logits: "dot" (s = x_i . y_j
    / temperature), "cosine" (cos / temperature) or "neg_cost" (-c / temperature).

    Shapes: x (N, D) and y (M, D), or (B, N, D) and (B, M, D) for B independent problems; p (N,) and
    q (M,), or with a leading B. None is uniform, 1/N and 1/M. The scale of a mass cancels within
    its softmax, and stays in the sums over it: masses are not normalised.
    Dtypes: float32, bfloat16, float16 (computed in float32, results in float32), float64 (cpu and
    reference). Gradients come back in each input's dtype.
    Memory: O(N + M) beyond the results and gradients, both ways; the kernels recompute the pairs in
    the backward. Float32 products are full float32, distances are formed from centred points (error
    about 2^-22 |x - centre|^2: tight clusters far apart need float64). The same bits for every
    number of threads. Second derivatives raise, but on the reference.

    A zero vector has cosine 0: cost 1, and no gradient through cosines. A mass of 0 is legal, its
    gradient is the limit; a negative or NaN mass makes the other side's results NaN. A side with no
    point, or without mass, has lse -inf and cost 0. A NaN in x_i makes row_cost_i and row_lse_i NaN
    and no other row's; every column sees all rows, so col_cost, col_lse and the sums are NaN too.

    Raises ValueError (shapes, names, numbers out of range), TypeError (dtypes), BackendUnavailable.
    Source: Zheng and Zhou (arXiv 2012.14100); with prototypes y and their prior q, Tanwisuth et al.
    (arXiv 2110.12024), whose mixture is of pi(mu|f) and pi(f|mu) under these costs and logits.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> result = conditional_transport(x, y, temperature=0.1)
    >>> result.row_cost.shape, result.col_cost.shape
    (torch.Size([3]), torch.Size([2]))
    >>> round(result.value.item(), 4)
    0.0
    """
    kind, logit, t = _check(x, y, p, q, cost, logits, temperature, rho)
    batched = x.dim() == 3
    name = resolve("conditional_transport", backend, CANDIDATES, x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    left, right = (points if batched else points[None] for points in (x.to(dtype), y.to(dtype)))
    mine = None if p is None else p.to(dtype).expand(left.shape[:2])
    other = None if q is None else q.to(dtype).expand(right.shape[:2])
    if name == "reference":
        with without_autocast(x):
            found = reference.conditional_transport_forward(
                left, right, mine, other, kind, logit, t
            )
    else:
        found = _differentiable(ops.primitives(name), left, right, mine, other, kind, logit, t)
    row_cost, col_cost, row_lse, col_lse = found
    forward, backward = _expected(row_cost, mine), _expected(col_cost, other)
    value = rho * forward + (1 - rho) * backward
    results = (value, forward, backward, row_cost, col_cost, row_lse, col_lse)
    return ConditionalTransport(*(results if batched else (t[0] for t in results)))


def _expected(cost: Tensor, mass: Tensor | None) -> Tensor:
    """(B,): the mean of cost (B, n), or its sum under the masses."""
    if mass is not None:
        return (mass * cost).sum(-1)
    return cost.sum(-1) / max(cost.shape[-1], 1)


def _check(x, y, p, q, cost, logits, temperature, rho) -> tuple[int, int, float]:
    """One line for what is wrong; returns (cost, logits, temperature) as the ops take them."""
    for name, points in (("x", x), ("y", y)):
        check.tensor(name, points)
        if points.dim() not in (2, 3):
            shape = "(N, D) or (B, N, D)" if name == "x" else "(M, D) or (B, M, D)"
            raise ValueError(f"{name} must be {shape}, got {tuple(points.shape)}")
        check.floating(name, points)
    if x.dim() != y.dim() or x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            "x and y must be (N, D) and (M, D), or (B, N, D) and (B, M, D), "
            f"got x {tuple(x.shape)} and y {tuple(y.shape)}"
        )
    if y.dtype != x.dtype:
        raise TypeError(f"y must have x's dtype {x.dtype}, got {y.dtype}")
    check.same_device(x, "x", "y", y)
    for name, mass, points in (("p", p, x), ("q", q, y)):
        if mass is None:
            continue
        check.tensor(name, mass)
        size = points.shape[-2]
        if mass.shape not in (points.shape[-2:-1], points.shape[:-1]):
            batch = f" or ({points.shape[0]}, {size})" if points.dim() == 3 else ""
            raise ValueError(f"{name} must be ({size},){batch}, got {tuple(mass.shape)}")
        check.floating(name, mass)
        check.same_device(x, "x", name, mass)
    check.choice("cost", cost, COSTS)
    check.choice("logits", logits, LOGITS)
    check.number("temperature", temperature)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    check.number("rho", rho)
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"rho must be between 0 and 1, got {rho}")
    return COSTS.index(cost), LOGITS.index(logits), float(temperature)


def _differentiable(op: SimpleNamespace, x, y, p, q, cost, logits, temperature):
    """(row_cost, col_cost, row_lse, col_lse) with their gradient (the ops run below autograd)."""
    x, y, p, q = (None if t is None else t.contiguous() for t in (x, y, p, q))
    # Dynamo refuses the same tensor in two places.
    y = y.view_as(y)
    settings = (op, cost, logits, temperature)
    if torch._C._are_functorch_transforms_active():
        way_out = ' on this backend; compile without the transform, or pass backend="reference"'
        refuse_compiled_transforms("conditional_transport", way_out)
        return _ConditionalFunctional.apply(x, y, p, q, settings)
    return _Conditional.apply(x, y, p, q, settings)


def _run(x, y, p, q, settings) -> tuple[Tensor, ...]:
    op, *numbers = settings
    return op.conditional_transport_forward(x, y, p, q, *numbers)


def _gradients(needs, settings, saved, grads) -> tuple[Tensor | None, ...]:
    need = sum(bit for bit, n in zip((NEED_X, NEED_Y, NEED_P, NEED_Q), needs, strict=False) if n)
    op, *numbers = settings

    def first() -> tuple[Tensor | None, ...]:
        upstream = [g.to(saved[0].dtype).contiguous() for g in grads]
        found = op.conditional_transport_backward(*saved, *upstream, *numbers, need)
        return tuple(g if n else None for g, n in zip(found, needs, strict=False))

    if not torch.is_grad_enabled():
        return (*first(), None)
    with torch.no_grad():
        found = first()
    return (*once(_NO_SECOND, found, *grads, *saved), None)


class _Conditional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, p, q, settings):
        found = _run(x, y, p, q, settings)
        ctx.save_for_backward(x, y, p, q, *found)
        ctx.settings = settings
        return found

    @staticmethod
    def backward(ctx: Any, *grads):
        return _gradients(ctx.needs_input_grad, ctx.settings, ctx.saved_tensors, grads)


class _ConditionalFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, y, p, q, settings):
        return _run(x, y, p, q, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        x, y, p, q, settings = inputs
        ctx.save_for_backward(x, y, p, q, *output)
        ctx.settings = settings

    @staticmethod
    def backward(ctx: Any, *grads):
        return _gradients(ctx.needs_input_grad, ctx.settings, ctx.saved_tensors, grads)
