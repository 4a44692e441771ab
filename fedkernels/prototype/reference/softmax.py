"""Softmax over prototypes in plain PyTorch, and its backward written out.

    logit_ij = -distance_ij / temperature + log_prior_j      (-inf where masked, or the prior is 0)
    lse_i    = log sum_j exp(logit_ij)
    prob_ij  = exp(logit_ij - lse_i)
    mass_j   = sum_i prob_ij

A row all of whose logits are -inf has lse -inf, prob 0, adds nothing to mass and has no gradient.
A NaN in x_i is in the results of that row and in mass alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels.prototype.reference.distance import prototype_distance, prototype_distance_backward

__all__ = [
    "allowed_pairs",
    "logits",
    "prototype_softmax",
    "prototype_softmax_backward",
    "pull_logits",
    "row_lse",
    "usable",
]


def prototype_softmax(
    x: Tensor,
    mu: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    metric: int,
    temperature: float,
    want_prob: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(prob (N, K), or (0,) if it is not wanted; lse (N,); mass (K,)), in mu's dtype."""
    mu = usable(mu, log_prior, mask)
    _, logit = logits(x, mu, log_prior, mask, metric, temperature)
    lse = row_lse(logit)
    empty = (lse == -torch.inf)[:, None]
    prob = torch.where(empty, 0.0, (logit - torch.where(empty, 0.0, lse[:, None])).exp())
    return prob if want_prob else mu.new_empty(0), lse, prob.sum(0)


def prototype_softmax_backward(
    x: Tensor,
    mu: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    lse: Tensor,
    g_prob: Tensor | None,
    g_lse: Tensor | None,
    g_mass: Tensor | None,
    metric: int,
    temperature: float,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dmu, dlog_prior) of any of the results; an upstream gradient of None is 0.

    A row whose upstream gradients are all 0 takes no part, whatever its values are.
    """
    mu = usable(mu, log_prior, mask)
    distance, logit = logits(x, mu, log_prior, mask, metric, temperature)
    upstream = torch.zeros_like(logit) if g_prob is None else g_prob
    if g_mass is not None:
        upstream = upstream + g_mass
    g_lse = torch.zeros_like(lse) if g_lse is None else g_lse
    silent = ((upstream == 0).all(1) & (g_lse == 0)) | (lse == -torch.inf)
    silent = silent[:, None]
    prob = torch.where(silent, 0.0, (logit - torch.where(silent, 0.0, lse[:, None])).exp())
    # A masked prototype has no gradient, whatever the upstream's value there is.
    share = torch.where(prob == 0, 0.0, prob * upstream)
    pull = share + prob * (g_lse[:, None] - share.sum(1, keepdim=True))
    pull = torch.where(silent, 0.0, pull)
    return pull_logits(x, mu, distance, pull, metric, temperature, need)


def logits(
    x: Tensor,
    mu: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    metric: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(distance, logit), both (N, K)."""
    distance = prototype_distance(x, mu, metric)
    logit = -distance / temperature
    if log_prior is not None:
        logit = logit + log_prior
    allowed = allowed_pairs(log_prior, mask)
    return distance, logit if allowed is None else torch.where(allowed, logit, -torch.inf)


def allowed_pairs(log_prior: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """bool, broadcasts to (N, K); None: all."""
    if log_prior is None:
        return mask
    prior = (log_prior != -torch.inf)[None]
    return prior if mask is None else prior & mask


def usable(mu: Tensor, log_prior: Tensor | None, mask: Tensor | None) -> Tensor:
    """mu with 0 for what is not finite and no row may use: 0 times NaN would be NaN."""
    allowed = allowed_pairs(log_prior, mask)
    if allowed is None:
        return mu
    dropped = ~allowed.any(0) & ~mu.detach().isfinite().all(1)
    return torch.where(dropped[:, None], 0.0, mu)


def row_lse(logit: Tensor) -> Tensor:
    """log sum exp of each row; -inf, with no gradient, where all of it is."""
    top = logit.detach().amax(1)
    top = torch.where(top == -torch.inf, 0.0, top)
    total = (logit - top[:, None]).exp().sum(1)
    empty = total == 0
    return torch.where(empty, -torch.inf, torch.where(empty, 1.0, total).log() + top)


def pull_logits(
    x: Tensor,
    mu: Tensor,
    distance: Tensor,
    pull: Tensor,
    metric: int,
    temperature: float,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dmu, dlog_prior) for dL/dlogit (N, K)."""
    found = prototype_distance_backward(x, mu, distance, -pull / temperature, metric, need)
    return (*found, pull.sum(0) if need & 4 else mu.new_empty(0))
