"""Gradients of what a Sinkhorn call returns, the same for every backend.

The primitive runs once, on detached tensors; each result that has a gradient is then attached to
the inputs by a Function of its own, so that `value` and `linear_cost` can follow different rules:

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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedkernels._second_derivative import once, refuse_compiled_transforms
from fedkernels.transport import implicit, mass
from fedkernels.transport.cost_gradient import points_gradient
from fedkernels.transport.implicit_points import linear_adjoint
from fedkernels.transport.problem import Problem, Settings, State
from fedkernels.transport.reference.points import pairwise_cost

__all__ = ["attach", "solve"]

_NO_SECOND = "fedkernels.transport: Sinkhorn's gradients cannot be differentiated again"
_HELD = (
    'sinkhorn: {} was differentiated under grad="envelope", which holds the potentials fixed and '
    'would give a wrong gradient; pass grad="implicit" (value has its gradient under both)'
)
_NON_FINITE, _INFEASIBLE = 2, 3


@dataclass(frozen=True)
class _Saved:
    """The tensors of a Function, in the order in which it takes them."""

    extra: Tensor | None  # value or linear as it was computed; V of `apply`
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
    linear: Tensor
    status: Tensor


def solve(problem: Problem, settings: Settings, **options) -> State:
    """Runs the primitive, below autograd."""
    p = problem
    with torch.no_grad(), _without_autocast(p.left):
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


def attach(
    kind: str, extra: Tensor | None, problem: Problem, state: State, settings: Settings
) -> Tensor:
    """A result with its gradient; kind is "value", "linear", "plan" or "apply"."""
    p, s = problem, state
    tensors = (
        extra, p.left, p.right, p.a, p.b, p.eps, p.sizes, s.f, s.g, s.u, s.v, s.r, s.c, s.linear,
        s.status,
    )  # fmt: skip
    if torch._C._are_functorch_transforms_active():
        refuse_compiled_transforms("sinkhorn", "; compile without the transform")
        return _AttachFunctional.apply(kind, settings, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors[:6]):
        return _Attach.apply(kind, settings, *tensors)
    with torch.no_grad():
        return _result(kind, settings, _Saved(*tensors))


def _result(kind: str, settings: Settings, t: _Saved) -> Tensor:
    with _without_autocast(t.left):
        if t.extra is None:
            return plan(settings, t, None)
        return apply_plan(settings, t, t.extra) if kind == "apply" else t.extra.clone()


def plan(settings: Settings, t: _Saved, scale: Tensor | None) -> Tensor:
    """scale_b P of each problem (B, n, m), 0 where scale_b is 0."""
    if settings.metric is None:
        return settings.op.sinkhorn_plan(t.left, t.eps, t.sizes, t.u, t.v, scale)
    return settings.op.sinkhorn_points_plan(
        t.left, t.right, t.eps, t.sizes, settings.metric, t.u, t.v, scale
    )


def apply_plan(settings: Settings, t: _Saved, V: Tensor, transpose: bool = False) -> Tensor:
    """P V, or P^T V."""
    if settings.metric is None:
        return settings.op.sinkhorn_apply(t.left, t.eps, t.sizes, t.u, t.v, V, transpose)
    return settings.op.sinkhorn_points_apply(
        t.left, t.right, t.eps, t.sizes, settings.metric, t.u, t.v, V, transpose
    )


def _without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    # The meta device has no autocast and refuses the question.
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def _sides(
    settings: Settings, p: Problem | _Saved, s: State | _Saved
) -> tuple[mass.Side, mass.Side]:
    shape = (s.f.shape[1], s.g.shape[1])
    return mass.sides(p.a, p.b, p.sizes, shape, p.left.device, settings.balanced)


# Gradients: each returns those of (extra, left, right, a, b, eps), before they are summed over a
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
        found[1] = plan(settings, t, scale) if left else None
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
    kind: str, settings: Settings, wanted: tuple[bool, ...], grad: Tensor, t: _Saved
) -> tuple[Tensor | None, ...]:
    with torch.no_grad(), _without_autocast(t.left):
        if kind == "value":
            found = _value_gradients(settings, (False, *wanted[1:]), grad, t)
        elif not settings.implicit:
            found = _held(kind, settings, wanted, grad, t)
        else:
            found = _implicit(kind, settings, wanted, grad, t)
        inputs = (t.extra, t.left, t.right, t.a, t.b, t.eps)
        return tuple(
            _to_shape(g, like) if need and g is not None and like is not None else None
            for g, need, like in zip(found, wanted, inputs, strict=True)
        )


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
        lifted = plan(settings, replace(t, u=u.lifted, v=v.lifted), None)
        problem = (cost, *solution, t.eps, *settings.rho, ok)
        if kind == "linear":
            found = implicit.linear_gradients(lifted, grad, *problem)
        else:
            G = grad if t.extra is None else grad @ t.extra.mT
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
        dV = torch.where(ok[:, None, None], apply_plan(settings, t, grad.contiguous(), True), 0.0)
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
    kind: str, settings: Settings, wanted: tuple[bool, ...], grad: Tensor, t: _Saved
) -> list[Tensor | None]:
    """The gradient to V alone is right with the plan held fixed."""
    if kind != "apply" or any(wanted[1:]):
        raise RuntimeError(_HELD.format("linear_cost" if kind == "linear" else "the plan"))
    return [apply_plan(settings, t, grad.contiguous(), transpose=True), *[None] * 5]


def _to_shape(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the problems that shared the input, in the input's dtype."""
    if gradient.shape[0] != like.shape[0]:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(like.dtype)


def _backward(ctx, grad: Tensor):
    wanted = ctx.needs_input_grad[2:8]
    saved = _Saved(*ctx.saved_tensors)
    grads = _gradients(ctx.kind, ctx.settings, wanted, grad, saved)
    if torch.is_grad_enabled():
        sources = (grad, saved.extra, saved.left, saved.right, saved.a, saved.b, saved.eps)
        grads = once(_NO_SECOND, grads, *sources)
    return (None, None, *grads, *[None] * 9)


def _keep(ctx, kind: str, settings: Settings, tensors: tuple[Tensor | None, ...]) -> None:
    ctx.kind, ctx.settings = kind, settings
    ctx.save_for_backward(*tensors)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kind, settings, *tensors):
        _keep(ctx, kind, settings, tensors)
        return _result(kind, settings, _Saved(*tensors))

    backward: Callable = staticmethod(_backward)


class _AttachFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(kind, settings, *tensors):
        return _result(kind, settings, _Saved(*tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):
        _keep(ctx, inputs[0], inputs[1], inputs[2:])

    backward: Callable = staticmethod(_backward)
