"""The three terms that H2Tune adds to a task's loss. Each returns a scalar with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["anchor", "logit_term", "norm_literal", "norm_small"]


def norm_small(T: Tensor) -> Tensor:
    """Mean over adapters of `||T||_F^2`; T `(L, S, r, r)`."""
    return T.square().sum((-2, -1)).mean()


def norm_literal(scores: Tensor, T: Tensor, relation: Tensor) -> Tensor:
    """(H6): one flat mean over `||S||_F`, `||T||_F` of every adapter and `||P||_F`.

    The root has no gradient at 0, where T may start: there it is taken as 0.
    """
    parts = [_norm(scores.flatten(2)).flatten(), _norm(T.flatten(2)).flatten()]
    return torch.cat([*parts, _norm(relation.flatten())[None]]).mean()


def _norm(x: Tensor) -> Tensor:
    square = x.square().sum(-1)
    positive = square > 0
    return torch.where(positive, square, torch.ones_like(square)).sqrt() * positive


def anchor(
    T: Tensor,
    index: Tensor,
    previous_T: Tensor,
    previous_index: Tensor,
    *,
    middle_rank: int,
) -> Tensor:
    """Mean over adapters of `KL(softmax(vec T_prev) || softmax(vec T))`, entries in both Omegas.

    T, previous_T `(L, S, r, r)`; index, previous_index `(L, S, r*r)` int64, positions in the
    `R x R` middle. Entries are matched by position in the middle, not by slot in T: the two differ
    as soon as the selection has changed. An adapter whose Omegas share nothing adds 0.
    """
    size = middle_rank * middle_rank
    shape = (*index.shape[:-1], size)
    dense = torch.zeros(shape, dtype=T.dtype, device=T.device)
    dense = dense.scatter(-1, previous_index, previous_T.detach().flatten(2))
    held = torch.zeros(shape, dtype=torch.bool, device=T.device).scatter(-1, previous_index, True)
    common = held.gather(-1, index)
    old = _masked_log_softmax(dense.gather(-1, index), common)
    new = _masked_log_softmax(T.flatten(2), common)
    return torch.where(common, old.exp() * (old - new), torch.zeros_like(new)).sum(-1).mean()


def _masked_log_softmax(x: Tensor, mask: Tensor) -> Tensor:
    # a finite floor instead of -inf: a row without any entry gives no NaN, nor does its gradient
    return torch.log_softmax(x.masked_fill(~mask, -1e9), dim=-1)


def logit_term(logits: Tensor, phase1_logits: Tensor) -> Tensor:
    """`KL(softmax(z_phase1) || softmax(z))`, mean over tokens or classified rows."""
    if logits.shape[0] == 0:
        return logits.sum() * 0.0
    old = F.log_softmax(phase1_logits.detach().float(), dim=-1)
    new = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(new, old, reduction="batchmean", log_target=True)
