"""Exact optimal transport of many small problems at once, on the CPU, in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkernels._backend import Candidate, resolve
from fedkernels._extension import is_built, why_not_built
from fedkernels._second_derivative import once, refuse_compiled_transforms
from fedkernels.transport import check
from fedkernels.transport.ops.emd import emd as _op

__all__ = ["EmdResult", "emd", "solve"]

# Random problems took at most 1.6 pivots a row and column at n = 16, 5 at 256 and 11 at 1024: the
# limit is there only so that a call ends whatever it is given.
_MAX_PIVOT, _PIVOTS_A_NODE = 20_000, 500
_NON_FINITE, _INFEASIBLE = 2, 3


@dataclass(frozen=True)
class EmdResult:
    """An exact plan and its duals. With cost (n, m) and single masses there is no leading B.

    value (B,) = <P, C>, the one field with gradients. f (B, n), g (B, m): f_i + g_j <= C_ij for
    every row and column, equality where P_ij > 0, <a, f> = <b, g>. plan (B, n, m): at most
    n + m - 1 entries are not 0. status (B,) uint8: a `TransportStatus`.
    """

    value: Tensor
    f: Tensor
    g: Tensor
    plan: Tensor
    status: Tensor


def _why_not(cost: Tensor) -> str | None:
    if cost.device.type != "cpu":
        return f"the tensors are on {cost.device}, the solver runs on the CPU"
    return None if is_built() else f"not built: {why_not_built()}"


CANDIDATES = (Candidate("cpu", _why_not),)


def emd(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, sizes: Tensor | None = None
) -> EmdResult:
    """Exact optimal transport (the earth mover's distance), batched.

        value = min <P, C>  over  P >= 0,  P 1 = a,  P^T 1 = b

    Shapes: cost (B, n, m), or (n, m) for one problem, or for one cost that all share; a (B, n),
    b (B, m), or one row for all. None is uniform over the problem's own size, with the other side's
    total where that is given, else 1. ``sizes`` (B, 2), whole numbers: problem k is the top left
    sizes[k] of its block; what lies outside is never looked at, and 0 in the results.

    Dtypes: float32, bfloat16, float16, float64; solved in float64, results in cost's dtype (float32
    for half types). Totals that differ by no more than 1e-4 of the larger (1e-6 in float64) are
    made equal by scaling b. status says per problem: CONVERGED, NON_FINITE (NaN or infinity in
    cost or masses; value NaN), INFEASIBLE (a negative mass, or totals that differ; value NaN),
    EMPTY (n = 0 or m = 0), MAX_ITER (never seen; it is there so that every call ends). One bad
    problem changes nothing for the others.

    Gradients of value: P to cost, f to a, g to b, the two centred (a mass moves within its total;
    with a constant added they are duals just as well), 0 for a problem without a solution. At a tie
    between plans they are a subgradient. Second derivatives raise.

    On the CPU only. Raises ValueError (shapes, sizes), TypeError (dtypes), BackendUnavailable
    (another device, or the compiled ops are missing).
    Method: network simplex with strongly feasible trees (Cunningham 1976), O(n m) memory a thread.

    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    >>> result = emd(cost, torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.75]))
    >>> result.value.item()
    0.5
    >>> result.plan
    tensor([[0.2500, 0.2500],
            [0.0000, 0.2500],
            [0.0000, 0.2500]])
    """
    return solve(cost, a, b, sizes)


def solve(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    sizes: Tensor | None,
    max_pivot: int | None = None,
) -> EmdResult:
    """`emd`, ending after ``max_pivot`` pivots of a problem (None: a limit that none reaches)."""
    check.cost_matrix(cost)
    n, m = cost.shape[-2:]
    check.masses(cost, "cost", n, m, a=a, b=b, eps=1.0, sizes=sizes, g0=None)
    leading = [
        (name, tensor.shape[0])
        for name, tensor, dims in (("cost", cost, 3), ("a", a, 2), ("b", b, 2), ("sizes", sizes, 2))
        if tensor is not None and tensor.dim() == dims
    ]
    batch = check.batch_of(leading)
    resolve("emd", "cpu", CANDIDATES, cost)
    if torch._C._are_functorch_transforms_active():
        refuse_compiled_transforms("emd", "")
    value, f, g, plan, status = _Emd.apply(
        cost if cost.dim() == 3 else cost[None],
        a[None] if a is not None and a.dim() == 1 else a,
        b[None] if b is not None and b.dim() == 1 else b,
        None if sizes is None else sizes.to(torch.int64).expand(batch, 2).contiguous(),
        batch,
        _MAX_PIVOT + _PIVOTS_A_NODE * (n + m) if max_pivot is None else max_pivot,
    )
    if not leading:
        return EmdResult(value[0], f[0], g[0], plan[0], status[0])
    return EmdResult(value, f, g, plan, status)


class _Emd(torch.autograd.Function):
    """The op, with the gradients of its value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cost, a, b, sizes, batch, max_pivot):
        exact = cost.dtype == torch.float64
        results = _op(
            cost.to(torch.float64).contiguous(),
            None if a is None else a.to(torch.float64).contiguous(),
            None if b is None else b.to(torch.float64).contiguous(),
            sizes,
            batch,
            1e-6 if exact else 1e-4,
            max_pivot,
        )
        *floats, status = results
        narrow = torch.float64 if exact else torch.float32
        return (*(t.to(narrow) for t in floats), status)

    @staticmethod
    def setup_context(ctx, inputs, output):
        cost, a, b, sizes, _, _ = inputs
        _, f, g, plan, status = output
        ctx.mark_non_differentiable(f, g, plan, status)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cost, a, b, sizes, f, g, plan, status)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 6
        if not torch.is_grad_enabled():
            return (*_gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors), None, None, None)
        with torch.no_grad():
            results = _gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors)
        message = "emd: the value has no second derivative (the plan is constant but for jumps)"
        return (*once(message, results, grad, *ctx.saved_tensors[:3]), None, None, None)


def _gradients(needs, grad, cost, a, b, sizes, f, g, plan, status):
    """(dcost, da, db) of value; None where not asked for."""
    lost = (status == _NON_FINITE) | (status == _INFEASIBLE)
    scale = torch.where(lost, 0, grad)[:, None]
    dcost = da = db = None
    if needs[0]:
        # Zero times NaN would be NaN.
        full = torch.where(lost[:, None, None], 0, plan) * scale[..., None]
        dcost = _as(full, cost)
    if needs[1]:
        da = _as(_centred(f, lost, None if sizes is None else sizes[:, 0]) * scale, a)
    if needs[2]:
        db = _as(_centred(g, lost, None if sizes is None else sizes[:, 1]) * scale, b)
    return dcost, da, db


def _centred(dual: Tensor, lost: Tensor, size: Tensor | None) -> Tensor:
    """The dual without its mean over the problem's own entries; 0 beyond them and where lost."""
    dual = torch.where(lost[:, None], 0, dual)
    if size is None:
        return dual - dual.mean(1, keepdim=True) if dual.shape[1] else dual
    inside = torch.arange(dual.shape[1], device=dual.device) < size[:, None]
    mean = dual.sum(1, keepdim=True) / size[:, None].clamp(min=1)
    return torch.where(inside, dual - mean, 0)


def _as(full: Tensor, like: Tensor) -> Tensor:
    """Summed over the problems where the input was shared by all, in the input's dtype."""
    if like.shape[0] != full.shape[0]:
        full = full.sum(0, keepdim=True)
    return full.to(like.dtype)
