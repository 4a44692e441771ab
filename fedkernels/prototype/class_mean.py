"""Means of the rows of each class: one read of x, deterministic, differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedkernels import _check
from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels.prototype import ops, reference
from fedkernels.prototype.autograd import attach, finish, needs
from fedkernels.prototype.check import wide

__all__ = ["ClassMean", "class_mean"]

CANDIDATES = candidates("class_sum")
_DOT = 3


@dataclass(frozen=True)
class ClassMean:
    """mean (K, D), differentiable, and count (K,): int64, of soft labels the sum of each column."""

    mean: Tensor
    count: Tensor


def class_mean(
    x: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    weight: Tensor | None = None,
    previous: Tensor | None = None,
    momentum: float | None = None,
    empty: str = "keep",
    backend: str = "auto",
) -> ClassMean:
    """The weighted mean of the rows of each class, for hard or soft labels.

        mean_k = sum_i w_i s_ik x_i / sum_i w_i s_ik        s_ik = 1 where label i is k
        with momentum m:  m * previous_k + (1 - m) * mean_k

    An empty class, one whose sum of weights is 0, has its row of ``previous`` under
    ``empty="keep"`` (momentum leaves it as it was; without ``previous``: 0) and 0 under "zero".

    Shapes: x (N, D); labels (N,) integers in 0..K-1, or soft (N, K), floating, of any sum; weight
    (N,), not negative, None is 1; previous (K, D). K is n_classes.
    Dtypes: x float32, bfloat16, float16 (results float32) or float64 (results float64; cpu and
    reference). Sums of hard labels run in float64 on the CPU. Gradients go to x, weight, soft
    labels and previous, each in its own dtype; count has none.
    Memory: nothing of (N, K) for hard labels. The same bits on each run and for every number of
    threads, gradients too. Second derivatives raise, but on the reference.

    A row of weight 0 takes no part and is not counted, whatever it holds. Labels out of range and
    weights that are negative or NaN raise for CPU tensors; on a GPU and in compiled code, where
    looking would stop the device, such rows take no part.

    Raises ValueError (shapes, names, numbers and contents out of range), TypeError (dtypes),
    BackendUnavailable.
    Source: the class prototypes of Snell et al. (arXiv 1703.05175), with an exponential moving
    average.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    >>> result = class_mean(x, torch.tensor([0, 0, 2]), 3)
    >>> result.mean.tolist(), result.count.tolist()
    ([[2.0, 3.0], [0.0, 0.0], [5.0, 5.0]], [2, 0, 1])
    """
    _check_arguments(x, labels, n_classes, weight, previous, momentum, empty)
    name = resolve("class_mean", backend, CANDIDATES, x)
    dtype = wide(x)
    labels = labels.to(torch.int64 if labels.dim() == 1 else dtype)
    weight = None if weight is None else weight.to(dtype)
    with without_autocast(x):
        if name == "reference":
            found = reference.class_sum(x, labels, weight, n_classes)
        else:
            found = _differentiable(ops.primitives(name), x, labels, weight, n_classes)
        total_sum, total, count, bad = found
        if _check.readable(x):
            _refuse_bad_rows(bad, labels, weight, n_classes)
        if previous is None:
            # The sum of a class without rows is 0, and 0 / 1 is 0 under both policies.
            plain = weight is None and labels.dim() == 1
            divisor = total.clamp_min(1) if plain else total + (total == 0)
            return ClassMean(total_sum / divisor.unsqueeze(1), _constant(count))
        filled = (total != 0)[:, None]
        mean = total_sum / torch.where(filled, total[:, None], 1)
        old = previous.to(dtype)
        if momentum is not None:
            mean = momentum * old + (1 - momentum) * mean
        kept = old if empty == "keep" else torch.zeros_like(mean)
        return ClassMean(torch.where(filled, mean, kept), _constant(count))


def _constant(count: Tensor) -> Tensor:
    """The count of soft labels would have a gradient on the reference, and nowhere else."""
    return count.detach() if count.requires_grad else count


def _check_arguments(x, labels, n_classes, weight, previous, momentum, empty) -> None:
    """One line for what is wrong."""
    _check.tensor("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must be (N, D), got {_check.shape(x)}")
    _check.floating("x", x)
    if not isinstance(n_classes, int) or isinstance(n_classes, bool):
        raise TypeError(f"n_classes must be an int, got {type(n_classes).__name__}")
    if n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    _check.tensor("labels", labels)
    rows, soft = x.shape[0], labels.dim() == 2
    if labels.shape != ((rows, n_classes) if soft else (rows,)):
        raise ValueError(
            f"labels must be ({rows},), or soft ({rows}, {n_classes}), got {_check.shape(labels)}"
        )
    if soft:
        _check.floating("soft labels", labels)
    elif labels.dtype not in _check.INTEGERS:
        raise TypeError(f"labels (N,) must be integers, got {labels.dtype}")
    _check.same_device(x, "x", "labels", labels)
    for name, value, shape in (
        ("weight", weight, (rows,)),
        ("previous", previous, (n_classes, x.shape[1])),
    ):
        if value is not None:
            _check.tensor(name, value)
            if value.shape != shape:
                raise ValueError(f"{name} must be {shape}, got {_check.shape(value)}")
            _check.floating(name, value)
            _check.same_device(x, "x", name, value)
    if momentum is not None:
        _check.number("momentum", momentum)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        if previous is None:
            raise ValueError("momentum needs the previous means: pass previous (K, D)")
    _check.choice("empty", empty, ("keep", "zero"))


def _refuse_bad_rows(bad: Tensor, labels: Tensor, weight: Tensor | None, n_classes: int) -> None:
    label, mass = bad.tolist()
    if label >= 0:
        raise ValueError(
            f"labels must lie in 0..{n_classes - 1}, got {int(labels[label])} in row {label}"
        )
    if mass >= 0 and weight is not None:
        raise ValueError(
            f"weight must not be negative or NaN, got {float(weight[mass])} in row {mass}"
        )


def _differentiable(op: SimpleNamespace, x, labels, weight, n_classes):
    """What the primitive returns, with its gradient (the ops run below autograd)."""
    x, labels = x.contiguous(), labels.contiguous()
    weight = None if weight is None else weight.contiguous()
    need = needs(x, labels, weight)
    return attach("class_mean", _run, _FORMS, need, x, labels, weight, (op, n_classes))


def _run(x, labels, weight, settings):
    op, n_classes = settings
    return op.class_sum(x, labels, weight, n_classes)


def _save(ctx: Any, x, labels, weight, settings, found) -> None:
    ctx.mark_non_differentiable(*found[2:])
    ctx.save_for_backward(x, labels, weight)
    ctx.op = settings[0]


def _backward(ctx: Any, g_sum: Tensor, g_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, labels, weight = ctx.saved_tensors
    rule = _hard if labels.dim() == 1 else _soft

    if weight is not None:
        # A row of weight 0 may hold anything; its weight's gradient is the limit where that exists.
        taken = (weight > 0)[:, None]
        x = torch.where(taken, x, x.nan_to_num(0, 0, 0))
        if labels.dim() == 2:
            labels = torch.where(taken, labels, labels.nan_to_num(0, 0, 0))

    def gradients() -> tuple[Tensor | None, ...]:
        upstream = (g_sum.contiguous(), g_total.contiguous())
        return rule(ctx.op, ctx.needs_input_grad, x, labels, weight, *upstream)

    return (*finish(gradients, x, g_sum, g_total, x, labels, weight), None)


def _hard(op, wanted, x, labels, weight, g_sum, g_total) -> tuple[Tensor | None, ...]:
    """dx_i = w_i g_k, dw_i = g_k . x_i + g_total_k for the class k of row i: no atomics."""
    # Rows that the forward left out find a row of zeros past the last class.
    classes = g_sum.shape[0]
    taken = (labels >= 0) & (labels < classes)
    if weight is not None:
        taken = taken & (weight >= 0)
    at = torch.where(taken, labels, classes)
    zero = g_sum.new_zeros(1, g_sum.shape[1])
    dx = dw = None
    if wanted[0] and weight is None:
        dx = torch.cat([g_sum, zero]).to(x.dtype).index_select(0, at)
    elif weight is not None:
        g = torch.cat([g_sum, zero]).index_select(0, at)
        if wanted[2]:
            dw = (g * x).sum(1) + torch.cat([g_total, zero.new_zeros(1)]).index_select(0, at)
        if wanted[0]:
            dx = (g * torch.where(taken, weight, 0)[:, None]).to(x.dtype)
    return dx, None, dw


def _soft(op, wanted, x, labels, weight, g_sum, g_total) -> tuple[Tensor | None, ...]:
    """dx_i = w_i sum_k s_ik g_k, ds_ik = w_i (g_k . x_i + g_total_k), dw_i = sum_k s_ik (...).

    Products by the family's own distance: torch's could be one in TF32.
    """
    w = None if weight is None else torch.where(weight >= 0, weight, 0)[:, None]
    dx = ds = dw = None
    if wanted[0]:
        dx = -op.prototype_distance(labels, g_sum.T.contiguous(), _DOT)
        dx = (dx if w is None else dx * w).to(x.dtype)
    if wanted[1] or wanted[2]:
        each = g_total - op.prototype_distance(x, g_sum, _DOT)
        ds = (each if w is None else each * w) if wanted[1] else None
        dw = (labels * each).sum(1) if wanted[2] else None
    return dx, ds, dw


class _ClassSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, labels, weight, settings):
        found = _run(x, labels, weight, settings)
        _save(ctx, x, labels, weight, settings, found)
        return found

    backward: Any = staticmethod(_backward)


class _ClassSumFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, labels, weight, settings):
        return _run(x, labels, weight, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        x, labels, weight, settings = inputs
        _save(ctx, x, labels, weight, settings, output)

    backward: Any = staticmethod(_backward)


_FORMS = (_ClassSum, _ClassSumFunctional)
