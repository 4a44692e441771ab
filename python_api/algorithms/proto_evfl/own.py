"""The lower level: what a party learns from rows that it alone holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkernels import conditional_transport
from python_api.algorithms.vertical.local_head import LocalHead

__all__ = ["OwnTerms", "own_loss", "transport_loss"]


@dataclass(frozen=True)
class OwnTerms:
    """Weights of the terms, and the temperature and balance of the transport."""

    local: float
    transport: float
    pseudo: float
    tau: float
    rho: float


def transport_loss(
    h: Tensor,
    prototypes: Tensor,
    prior: Tensor,
    *,
    tau: float,
    rho: float = 0.5,
    weight: Tensor | None = None,
) -> Tensor:
    """Conditional transport between representations (n, d) and fixed prototypes (C, d).

    L = rho sum_i v_i sum_c pi(c | h_i) c_ic + (1 - rho) sum_c w_c sum_i pi(i | mu_c) c_ic,
    c_ic = 1 - cos(mu_c, h_i), logits cos / tau; v = 1/n, or `weight` as shares. 0 without rows.
    """
    if len(h) == 0:
        return h.sum()
    mass = None if weight is None else weight / weight.sum().clamp_min(1e-12)
    return conditional_transport(
        h,
        prototypes.detach(),
        p=mass,
        q=prior,
        cost="cosine",
        logits="cosine",
        temperature=tau,
        rho=rho,
    ).value


def own_loss(
    h: Tensor,
    y: Tensor,
    kept: Tensor,
    *,
    head: LocalHead,
    visiting: Tensor | None,
    log_prior: Tensor,
    prior: Tensor,
    terms: OwnTerms,
    mask: Tensor | None = None,
    soft: Tensor | None = None,
    guess: Tensor | None = None,
) -> Tensor:
    """The sum of up to four terms over one batch of own rows.

        CE of the fused head where only this party is present     rows with a label
        + local * CE of the local head                            rows with a label
        + transport * L_CT                                        rows that were selected
        + pseudo * CE of the local head against the guessed class rows whose guess is >= 0

    h (B, d); y (B,), -1 without a label; kept (B,) bool; visiting (C, d + 1), the fused head with
    its bias last, or None; mask (C,) the classes that take part; guess (B,), -1 where none.
    """
    loss = terms.local * head.loss(h, y, log_prior, mask)
    labelled = y >= 0
    if visiting is not None and bool(labelled.any()):
        logits = h @ visiting[:, :-1].T + visiting[:, -1] + log_prior
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        loss = loss + torch.nn.functional.cross_entropy(logits, y, ignore_index=-1)
    if terms.transport:
        weight = None if soft is None else soft[kept]
        if mask is not None:  # to a class that takes no part nothing is transported
            prior = torch.where(mask, prior, 0.0)
            prior = prior / prior.sum()
        loss = loss + terms.transport * transport_loss(
            h[kept], head.prototypes, prior, tau=terms.tau, rho=terms.rho, weight=weight
        )
    if terms.pseudo and guess is not None:
        even = torch.zeros_like(log_prior)
        if mask is not None:  # a class that takes no part is nobody's guess
            guess = torch.where(mask[guess.clamp_min(0)], guess, -1)
        loss = loss + terms.pseudo * head.loss(h, guess, even, mask, guessed=True)
        if visiting is not None and bool((guess >= 0).any()):
            logits = h @ visiting[:, :-1].T + visiting[:, -1]
            if mask is not None:
                logits = logits.masked_fill(~mask, -torch.inf)
            loss = loss + terms.pseudo * torch.nn.functional.cross_entropy(
                logits, guess, ignore_index=-1
            )
    return loss
