"""Cross-entropy of a softmax over prototypes; its gradient comes from the forward's pass over x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkernels._autocast import without_autocast
from fedkernels._backend import resolve
from fedkernels._candidates import candidates
from fedkernels._check import choice, readable
from fedkernels.prototype import check, ops, reference
from fedkernels.prototype.autograd import attach, finish, needs
from fedkernels.prototype.ops.softmax import NONE, SUM

__all__ = ["prototype_cross_entropy"]

CANDIDATES = candidates("prototype_cross_entropy")
REDUCTIONS = ("none", "sum", "mean")


def prototype_cross_entropy(
    x: Tensor,
    prototypes: Tensor,
    target: Tensor,
    *,
    metric: str = "sqeuclidean",
    temperature: float = 1.0,
    log_prior: Tensor | None = None,
    mask: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of points against labels, with distances to prototypes as logits.

        logit_ij = -distance_ij / temperature + log_prior_j
        loss_i   = sum_j w_j t_ij (log sum_j' exp(logit_ij') - logit_ij)

    t is one where j is the label of row i, or the soft target; w is class_weight (None: 1).
    reduction: "none" (N,), "sum", or "mean": sum_i loss_i / sum_ij w_j t_ij, for soft targets too
    (`torch.nn.functional.cross_entropy` divides those by N). 0/0 is NaN, as it is there.

    Shapes: x (N, D), prototypes (K, D), target integer (N,) or floating (N, K), log_prior and
    class_weight (K,), mask bool (K,) or (N, K), True where a prototype may be used. Dtypes, metrics
    and the precision of a distance: `prototype_distance`; the loss is float32, float64 for float64.
    Memory: nothing of size (N, K). With "sum" and "mean" the forward computes the gradient too, in
    the same pass, and keeps it in place of x; with "none", and for float16 (whose gradients would
    leave its range before a loss scaler multiplies them), x is kept and read again.
    Gradients to x, prototypes and log_prior; target and class_weight are constants. Column sums in
    a fixed order, the same bits for every number of threads. Second derivatives raise, but on the
    reference.

    Rows whose label is ignore_index, and rows with everything masked, have loss 0, no weight in the
    mean and no gradient, whatever x holds there. A label whose prototype is masked costs inf; its
    gradient is that of the log of the total over what is not masked. A NaN row of x has loss NaN.
    A label out of range raises on the CPU in eager mode; compiled or on a GPU its loss is NaN.

    Raises ValueError (shapes, labels, weights, temperature), TypeError (dtypes),
    BackendUnavailable. Source: Snell et al. (arXiv 1703.05175).

    >>> x = torch.tensor([[0.0], [1.0], [1.2]])
    >>> loss = prototype_cross_entropy(x, torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1, 1]))
    >>> round(loss.item(), 4)
    0.2823
    """
    x, mu, number = check.points(x, prototypes, metric)
    target = check.labels(x, mu, target)
    mask = check.mask_of(x, mu, mask)
    temperature, prior = check.logit_options(x, mu, temperature, log_prior)
    weight = check.class_weights(x, mu, class_weight)
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    choice("reduction", reduction, REDUCTIONS)
    name = resolve("prototype_cross_entropy", backend, CANDIDATES, x)
    numbers = number, temperature, ignore_index, REDUCTIONS.index(reduction)
    look = target.dim() == 1 and readable(target)
    if name == "reference":
        with without_autocast(x):
            loss, *_, bad = reference.prototype_cross_entropy(
                x, mu, target, prior, mask, weight, None, *numbers, 0
            )
        if look:
            _raise_if_bad(bad, target, mu, ignore_index)
        return loss
    need = needs(x, mu, prior)
    settings = ops.primitives(name), numbers, need, look
    inputs = x, mu, prior, target, mask, weight
    # float16: the gradient of a mean over many rows is smaller than it can hold, until what a loss
    # scaler sends back has multiplied it.
    late = numbers[3] == NONE or x.dtype == torch.float16
    forms = (_LossLate if late else _Loss), _LossFunctional
    found = attach("prototype_cross_entropy", _run, forms, need, *inputs, settings)
    return found[0] if isinstance(found, tuple) else found


def _raise_if_bad(bad: Tensor, target: Tensor, mu: Tensor, ignore_index: int) -> None:
    row = int(bad)
    if row >= 0:
        raise ValueError(
            f"target must hold classes from 0 to {mu.shape[0] - 1}, or ignore_index "
            f"{ignore_index}; got {int(target[row])} in row {row}"
        )


def _call(x, mu, prior, target, mask, weight, settings, need: int) -> tuple[Tensor, ...]:
    """(loss, dx, dmu, dprior)."""
    op, numbers, _, look = settings
    *found, bad = op.prototype_cross_entropy(
        x, mu, target, prior, mask, weight, None, *numbers, need
    )
    if look:
        _raise_if_bad(bad, target, mu, numbers[2])
    return tuple(found)


def _run(x, mu, prior, target, mask, weight, settings) -> Tensor:
    return _call(x, mu, prior, target, mask, weight, settings, 0)[0]


def _backward_late(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mu, prior, target, mask, weight = ctx.saved_tensors
    op, (metric, temperature, ignore_index, reduction), *_ = ctx.settings
    wanted = ctx.needs_input_grad[:3]

    def gradients() -> tuple[Tensor | None, ...]:
        need = sum(bit << i for i, bit in enumerate(wanted))
        rows = grad.expand(x.shape[:1]).contiguous()
        _, *found, _ = op.prototype_cross_entropy(
            x, mu, target, prior, mask, weight, rows, metric, temperature, ignore_index,
            SUM if reduction == NONE else reduction, need,
        )  # fmt: skip
        return tuple(g if n else None for g, n in zip(found, wanted, strict=True))

    return (*finish(gradients, x, grad, x, mu, prior), None, None, None, None)


def _backward_scaled(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    anchor, *found = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]

    def gradients() -> tuple[Tensor | None, ...]:
        if readable(grad) and grad.item() == 1.0:
            scaled = found
        else:  # in the loss' dtype: bfloat16 would round the factor for all elements alike
            scaled = [(g.to(grad.dtype) * grad).to(g.dtype) for g in found]
        return tuple(g if n else None for g, n in zip(scaled, wanted, strict=True))

    return (*finish(gradients, anchor, grad, anchor), None, None, None, None)


class _Loss(torch.autograd.Function):
    """loss, and an empty tensor that is as differentiable as it: x itself need not be kept."""

    @staticmethod
    def forward(ctx: Any, x, mu, prior, target, mask, weight, settings):
        loss, *found = _call(x, mu, prior, target, mask, weight, settings, settings[2])
        anchor = loss.new_empty(0)
        ctx.save_for_backward(anchor, *found)
        return loss, anchor

    backward: Any = staticmethod(_backward_scaled)


class _LossLate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, mu, prior, target, mask, weight, settings):
        ctx.save_for_backward(x, mu, prior, target, mask, weight)
        ctx.settings = settings
        return _call(x, mu, prior, target, mask, weight, settings, 0)[0]

    backward: Any = staticmethod(_backward_late)


class _LossFunctional(torch.autograd.Function):
    """Under torch.func: which gradients are asked for is not known here, so they come late."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, mu, prior, target, mask, weight, settings):
        return _call(x, mu, prior, target, mask, weight, settings, 0)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors)

    backward: Any = staticmethod(_backward_late)
