"""Softmax over prototypes: probabilities, their logarithmic total, and what each class receives."""

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

__all__ = ["PrototypeSoftmax", "prototype_softmax"]

CANDIDATES = candidates("prototype_softmax")


@dataclass(frozen=True)
class PrototypeSoftmax:
    """What `prototype_softmax` returns; every field is differentiable.

    prob (N, K), None if it was not asked for; lse (N,) = log sum_j exp(logit_ij); mass (K,) =
    sum_i prob_ij.
    """

    prob: Tensor | None
    lse: Tensor
    mass: Tensor


def prototype_softmax(
    x: Tensor,
    prototypes: Tensor,
    *,
    metric: str = "sqeuclidean",
    temperature: float = 1.0,
    log_prior: Tensor | None = None,
    mask: Tensor | None = None,
    return_prob: bool = True,
    backend: str = "auto",
) -> PrototypeSoftmax:
    """Soft assignment of points to prototypes, in one pass over x each way.

        logit_ij = -distance_ij / temperature + log_prior_j
        prob_ij  = exp(logit_ij - lse_i),  lse_i = log sum_j exp(logit_ij),  mass_j = sum_i prob_ij

    Shapes: x (N, D), prototypes (K, D), log_prior (K,), mask bool (K,) or (N, K), True where a
    prototype may be used. Dtypes, metrics and the precision of a distance: `prototype_distance`.
    Memory: with ``return_prob=False`` nothing of size (N, K) is held, forward or backward; mass and
    lse have gradients all the same.
    A masked prototype, or a log_prior of -inf, has logit -inf. A row with nothing else has lse
    -inf, prob 0, adds nothing to mass and has no gradient. A NaN row of x is NaN in its own
    results; mass, a sum over rows, is NaN with it. Gradients to x, prototypes and log_prior;
    column sums in a fixed order. Second derivatives raise, but on the reference.

    Raises ValueError (shapes, temperature), TypeError (dtypes), BackendUnavailable.
    Source: Snell et al. (arXiv 1703.05175).

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> found = prototype_softmax(x, torch.tensor([[0.0], [1.0], [9.0]]), temperature=0.1)
    >>> found.mass.round().tolist()
    [1.0, 1.0, 0.0]
    """
    x, mu, number = check.points(x, prototypes, metric)
    mask = check.mask_of(x, mu, mask)
    temperature, prior = check.logit_options(x, mu, temperature, log_prior)
    name = resolve("prototype_softmax", backend, CANDIDATES, x)
    want = bool(return_prob)
    if name == "reference":
        with without_autocast(x):
            prob, lse, mass = reference.prototype_softmax(
                x, mu, prior, mask, number, temperature, want
            )
    else:
        settings = ops.primitives(name), number, temperature, want
        need = needs(x, mu, prior)
        prob, lse, mass = attach(
            "prototype_softmax", _run, _FORMS, need, x, mu, prior, mask, settings
        )
    return PrototypeSoftmax(prob if want else None, lse, mass)


def _run(x, mu, prior, mask, settings) -> Any:
    op, metric, temperature, want = settings
    return op.prototype_softmax(x, mu, prior, mask, metric, temperature, want)


def _save(ctx: Any, x, mu, prior, mask, settings, found) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mu, prior, mask, found[1])
    ctx.settings = settings


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, mu, prior, mask, lse = ctx.saved_tensors
    op, metric, temperature, want = ctx.settings
    wanted = ctx.needs_input_grad[:3]
    if all(g is None for g in grads):
        return (None,) * 5

    def gradients() -> tuple[Tensor | None, ...]:
        given = [None if g is None else g.contiguous() for g in grads]
        g_prob = given[0] if want else None
        need = sum(bit << i for i, bit in enumerate(wanted))
        found = op.prototype_softmax_backward(
            x, mu, prior, mask, lse, g_prob, *given[1:], metric, temperature, need
        )
        return tuple(g if n else None for g, n in zip(found, wanted, strict=True))

    return (*finish(gradients, x, *grads, x, mu, prior), None, None)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, mu, prior, mask, settings):
        found = _run(x, mu, prior, mask, settings)
        _save(ctx, x, mu, prior, mask, settings, found)
        return found

    backward: Any = staticmethod(_backward)


class _SoftmaxFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mu, prior, mask, settings):
        return _run(x, mu, prior, mask, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs, output) -> None:
        x, mu, prior, mask, settings = inputs
        _save(ctx, x, mu, prior, mask, settings, output)

    backward: Any = staticmethod(_backward)


_FORMS = (_Softmax, _SoftmaxFunctional)
