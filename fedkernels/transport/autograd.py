"""Gradients of what a Sinkhorn call returns, the same for every backend.

The primitive runs once, on detached tensors; what has a gradient is then attached to the inputs by
a Function, each result by its own rule:

    value         the envelope theorem: the potentials are held fixed
    linear_cost,  grad="implicit": the optimality conditions are differentiated (implicit.py);
    plan, apply   grad="envelope": a backward raises, since held potentials would give wrong numbers

Two forms of the Function. The ctx form runs in eager mode and under Dynamo; its twin with
``setup_context`` supports torch.func, costs 20-30 us more a call, and runs only while functorch
transforms are active. A second derivative raises on every backend, the reference too: it would be
taken with held potentials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._second_derivative import once, refuse_compiled_transforms
from fedkernels.transport import implicit, mass
from fedkernels.transport.cost_gradient import points_gradient
from fedkernels.transport.implicit_points import linear_adjoint
from fedkernels.transport.ops.held import held_gradient
from fedkernels.transport.problem import Problem, Settings, State
from fedkernels.transport.reference.points import pairwise_cost

__all__ = ["apply_plan", "costs", "plan", "solve"]

_NO_SECOND = "fedkernels.transport: Sinkhorn's gradients cannot be differentiated again"
_HELD = (
    'sinkhorn: {} was differentiated under grad="envelope", which holds the potentials fixed and '
    'would give a wrong gradient; pass grad="implicit" (value has its gradient under both)'
)
_NON_FINITE, _INFEASIBLE = 2, 3


@dataclass(frozen=True)
class _Saved:
    """The tensors of a Function, in the order in which it takes them."""

    V: Tensor | None
    left: Tensor
    right: Tensor | None
    a: Tensor | None
    b: Tensor | None
    eps: Tensor
    sizes: Tensor | None
    f: Tensor
    g: Tensor
    u: Tensor
    v: Tensor
    r: Tensor
    c: Tensor
    value: Tensor
    linear: Tensor
    status: Tensor


def solve(problem: Problem, settings: Settings, **options) -> State:
    """Runs the primitive, below autograd."""
    p = problem
    with torch.no_grad(), without_autocast(p.left):
        left, right, a, b, eps = (
            None if t is None else t.detach() for t in (p.left, p.right, p.a, p.b, p.eps)
        )
        rho_a, rho_b = settings.rho
        common = (a, b, eps, p.sizes, p.g0, p.batch)
        iteration = (rho_a, rho_b, options["max_iter"], options["tol"])
        if settings.metric is None:
            found = settings.op.sinkhorn_forward(
                left, *common, *iteration, options["log"], options["sor"]
            )
        else:
            found = settings.op.sinkhorn_points_forward(
                left, right, *common, settings.metric, *iteration, options["sor"],
                options["symmetric"],
            )  # fmt: skip
        state = State(*found)
        if settings.entropy:
            term = p.eps.detach() * mass.entropy_term(*_sides(settings, p, state))
            return State((state.value.double() + term).to(state.value.dtype), *found[1:])
        return state


def costs(problem: Problem, state: State, settings: Settings) -> tuple[Tensor, Tensor]:
    """value and linear_cost, (B,) each."""
    return _attach("costs", None, problem, state, settings)


def plan(problem: Problem, state: State, settings: Settings) -> Tensor:
    """P (B, n, m)."""
    return _attach("plan", None, problem, state, settings)


def apply_plan(V: Tensor, problem: Problem, state: State, settings: Settings) -> Tensor:
    """P V for V (B, m, d)."""
    return _attach("apply", V, problem, state, settings)


def _attach(kind: str, V: Tensor | None, p: Problem, s: State, settings: Settings) -> Any:
    # Dynamo refuses the same tensor in two places.
    right = None if p.right is None else p.right.view_as(p.right)
    b = None if p.b is None else p.b.view_as(p.b)
    tensors = (
        V, p.left, right, p.a, b, p.eps, p.sizes, s.f, s.g, s.u, s.v, s.r, s.c, s.value, s.linear,
        s.status,
    )  # fmt: skip
    if torch._C._are_functorch_transforms_active():
        refuse_compiled_transforms("sinkhorn", "; compile without the transform")
        return _AttachFunctional.apply(kind, settings, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors[:6]):
        return _Attach.apply(kind, settings, *tensors)
    if kind == "costs":
        return s.value, s.linear
    with torch.no_grad():
        return _result(kind, settings, _Saved(*tensors))


def _result(kind: str, settings: Settings, t: _Saved) -> Any:
    if kind == "costs":
        return t.value.clone(), t.linear.clone()
    with without_autocast(t.left):
        return _plan(settings, t, None) if t.V is None else _product(settings, t, t.V)


def _plan(settings: Settings, t: _Saved, scale: Tensor | None) -> Tensor:
    """scale_b P of each problem (B, n, m), 0 where scale_b is 0."""
    if settings.metric is None:
        return settings.op.sinkhorn_plan(t.left, t.eps, t.sizes, t.u, t.v, scale)
    return settings.op.sinkhorn_points_plan(
        t.left, t.right, t.eps, t.sizes, settings.metric, t.u, t.v, scale
    )


def _product(settings: Settings, t: _Saved, V: Tensor, transpose: bool = False) -> Tensor:
    """P V, or P^T V."""
    if settings.metric is None:
        return settings.op.sinkhorn_apply(t.left, t.eps, t.sizes, t.u, t.v, V, transpose)
    return settings.op.sinkhorn_points_apply(
        t.left, t.right, t.eps, t.sizes, settings.metric, t.u, t.v, V, transpose
    )


def _sides(
    settings: Settings, p: Problem | _Saved, s: State | _Saved
) -> tuple[mass.Side, mass.Side]:
    shape = (s.f.shape[1], s.g.shape[1])
    return mass.sides(p.a, p.b, p.sizes, shape, p.left.device, settings.balanced)


# Gradients: each returns those of (V, left, right, a, b, eps), before they are summed over a
# shared leading dimension. `wanted` says which are read.


def _value_gradients(
    settings: Settings, wanted: tuple[bool, ...], grad: Tensor, t: _Saved
) -> list[Tensor | None]:
    _, left, right, a, b, eps = wanted
    entropy = settings.entropy
    bad = _bad(t)
    scale = torch.where(bad, 0.0, grad)
    found: list[Tensor | None] = [None] * 6
    if settings.metric is None:
        found[1] = _plan(settings, t, scale) if left else None
    elif left or right:
        found[1:3] = settings.op.sinkhorn_points_backward(
            t.left, t.right, t.eps, t.sizes, settings.metric, t.u, t.v, scale,
            torch.zeros_like(scale), None, None,
        )  # fmt: skip
    if not (a or b or eps):
        return found
    both = _sides(settings, t, t)
    wide, column = t.eps[:, None], scale.double()[:, None]
    if a or b:
        rows = mass.mass_gradients(both, (t.f, t.g), (t.r, t.c), settings.rho, wide, entropy)
        for k, (side, row) in enumerate(zip(both, rows, strict=True)):
            found[3 + k] = side.masked(torch.where(bad[:, None], 0.0, row) * column)
    if eps:
        kl = mass.eps_gradient(both, (t.f, t.g), (t.r, t.c), t.linear, wide, entropy)
        found[5] = torch.where(bad, 0.0, kl) * column[:, 0]
    return found


def _bad(t: _Saved) -> Tensor:
    """The problems without a solution: their gradients are 0."""
    return (t.status == _NON_FINITE) | (t.status == _INFEASIBLE)


def _gradients(
    kind: str,
    settings: Settings,
    wanted: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    t: _Saved,
    traced: bool,
) -> list[Tensor | None]:
    """Of (V, left, right, a, b, eps), in their shapes and dtypes."""
    if kind == "costs":
        value, linear = grads
        if linear is not None and not settings.implicit:
            refused = _refuse("linear_cost", linear, traced)
            value = refused if value is None else value + refused
        found: list[Tensor | None] = [None] * 6
        if value is not None:
            found = _value_gradients(settings, wanted, value, t)
        if linear is not None and settings.implicit:
            found = _sum(found, _implicit("linear", settings, wanted, linear, t))
    else:
        (grad,) = grads
        if grad is None:  # nothing downstream of the plan has a gradient
            return [None] * 6
        rule = _implicit if settings.implicit else _held
        found = rule(kind, settings, wanted, grad, t, *([] if settings.implicit else [traced]))
    inputs = (t.V, t.left, t.right, t.a, t.b, t.eps)
    return [
        _to_shape(g, like) if need and g is not None and like is not None else None
        for g, need, like in zip(found, wanted, inputs, strict=True)
    ]


def _sum(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    return [
        b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)
    ]


def _refuse(what: str, grad: Tensor, traced: bool) -> Tensor:
    """Raises, where Python sees that somebody asked; else a (B,) that does when it is computed."""
    if traced:
        return held_gradient(grad, _HELD.format(what))
    raise RuntimeError(_HELD.format(what))


def _implicit(
    kind: str, settings: Settings, wanted: tuple[bool, ...], grad: Tensor, t: _Saved
) -> list[Tensor | None]:
    """Through the optimality conditions; see implicit.py and implicit_points.py."""
    ok = ~_bad(t)
    u = implicit.lift(t.u, t.f, t.eps, t.sizes, 0)
    v = implicit.lift(t.v, t.g, t.eps, t.sizes, 1)
    solution = (u, v, t.f, t.g)
    metric = settings.metric
    if kind == "linear" and t.right is not None and metric is not None:
        left, right, da, db, deps = _linear_of_points(
            settings, grad, t, t.right, metric, solution, ok
        )
    else:
        cost = t.left
        if t.right is not None and metric is not None:
            cost = pairwise_cost(t.left, t.right, metric, t.sizes)
        lifted = _plan(settings, replace(t, u=u.lifted, v=v.lifted), None)
        problem = (cost, *solution, t.eps, *settings.rho, ok)
        if kind == "linear":
            found = implicit.linear_gradients(lifted, grad, *problem)
        else:
            G = grad if t.V is None else grad @ t.V.mT
            # The upstream gradient of a cell that holds nothing, the padding's too, may be anything
            G = torch.where(lifted != 0, G, 0.0)
            found = implicit.plan_gradients(lifted, G, *problem)
        left, right, da, db, deps = found.cost, None, found.a, found.b, found.eps
        if t.right is not None and metric is not None:
            left, right = points_gradient(found.cost, t.left, t.right, metric)
    both = _sides(settings, t, t)
    rows = mass.finish([da, db], both, settings.balanced)
    rows = [
        side.masked(torch.where(ok[:, None], row, 0.0))
        for side, row in zip(both, rows, strict=True)
    ]
    dV = None
    if kind == "apply" and wanted[0]:
        dV = torch.where(ok[:, None, None], _product(settings, t, grad.contiguous(), True), 0.0)
    return [dV, left, right, *rows, torch.where(ok, deps, 0.0)]


def _linear_of_points(
    settings: Settings,
    grad: Tensor,
    t: _Saved,
    y: Tensor,
    metric: int,
    solution: tuple[implicit.Lifted, implicit.Lifted, Tensor, Tensor],
    ok: Tensor,
) -> tuple[Tensor, ...]:
    u, v, f, g = solution
    found = linear_adjoint(
        settings.op, t.left, y, t.eps, t.sizes, metric, u, v, f, g, *settings.rho, ok
    )
    weight = torch.where(ok, grad, 0.0)
    column = weight[:, None]
    dx, dy = settings.op.sinkhorn_points_backward(
        t.left, y, t.eps, t.sizes, metric, u.kept, v.kept, weight, weight * found.w1,
        column * found.alpha, column * found.beta,
    )  # fmt: skip
    return dx, dy, column * found.a, column * found.b, weight * found.eps


def _held(
    kind: str, settings: Settings, wanted: tuple[bool, ...], grad: Tensor, t: _Saved, traced: bool
) -> list[Tensor | None]:
    """The gradient to V alone is right with the plan held fixed."""
    found: list[Tensor | None] = [None] * 6
    if any(wanted[1:]):
        refused = _refuse("the plan", grad, traced)
        for k, like in enumerate((t.left, t.right, t.a, t.b, t.eps)):
            if like is not None:
                shape = (refused.shape[0], *like.shape[1:])
                found[1 + k] = refused.reshape(-1, *[1] * (like.dim() - 1)).expand(shape)
    if kind == "apply" and wanted[0]:
        found[0] = _product(settings, t, grad.contiguous(), transpose=True)
    return found


def _to_shape(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the problems that shared the input, in the input's dtype."""
    if gradient.shape[0] != like.shape[0]:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(like.dtype)


def _backward(ctx, *grads: Tensor | None):
    kind, settings, traced = ctx.call
    wanted = ctx.needs_input_grad[2:8]
    t = _Saved(*ctx.saved_tensors)
    with torch.no_grad(), without_autocast(t.left):
        found = tuple(_gradients(kind, settings, wanted, grads, t, traced))
    if torch.is_grad_enabled():
        found = once(_NO_SECOND, found, *grads, t.V, t.left, t.right, t.a, t.b, t.eps)
    return (None, None, *found, *[None] * 10)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kind, settings, *tensors):
        # Compiled, every output gets a gradient, of zeros where nobody asked.
        traced = torch.compiler.is_compiling()
        if not traced:
            ctx.set_materialize_grads(False)
        ctx.call = kind, settings, traced
        ctx.save_for_backward(*tensors)
        return _result(kind, settings, _Saved(*tensors))

    backward: Callable = staticmethod(_backward)


class _AttachFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(kind, settings, *tensors):
        return _result(kind, settings, _Saved(*tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call = inputs[0], inputs[1], True
        ctx.save_for_backward(*inputs[2:])

    backward: Callable = staticmethod(_backward)
