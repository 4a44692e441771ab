"""Masked training, and rows of the active party completed by estimates (FedCVT, in little)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from python_api.algorithms.baselines.vertical.masked import VflMasked
from python_api.algorithms.proto_evfl.prior import histogram
from python_api.algorithms.vertical.algorithm import Batch

__all__ = ["FedcvtLite", "attend"]

ESTIMATE = 0.1  # weight of the distance between estimated and true representations


def attend(query: Tensor, key: Tensor, value: Tensor, *, others: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt d) V: (n, d), (N, d), (N, e) -> (n, e).

    others: Q is K, and no row attends to itself (there must be two).

    >>> eye = torch.eye(2)
    >>> attend(eye, eye, torch.tensor([[1.0], [5.0]]), others=True).tolist()
    [[5.0], [1.0]]
    """
    score = query @ key.T / math.sqrt(key.shape[1])
    if others:
        score = score.masked_fill(
            torch.eye(len(score), dtype=torch.bool, device=score.device), -torch.inf
        )
    return torch.softmax(score, 1) @ value


class FedcvtLite(VflMasked):
    """Cross-view training. What a passive party would have sent for a row that the active party
    alone holds is estimated from the aligned rows of the batch:

        h'_m(i) = softmax(h_a(i) H_a^T / sqrt d) H_m

    The fused head learns from these rows a second time, with the estimates in place, and the
    estimates of aligned rows (each from the other ones) are drawn to what was sent, with weight
    0.1. A completed row looks like an aligned one, and its class was drawn from another histogram:
    log p_own - log p_aligned is added to its logits, or the fused head would take over the own
    rows' histogram. The full method's split into common and unique parts, its three classifiers
    and its pseudo-labels are left out: the rows that are completed have labels. At test a party
    that is missing is masked.

    It sends what `vfl_masked` sends; estimates are made where the labels are.
    """

    name = "fedcvt_lite"

    def begin_run(self) -> None:
        super().begin_run()
        y, aligned = self.server.y["train"], self.server.aligned()
        own, joint = (histogram(y[at], self.server.classes) for at in (~aligned, aligned))
        self._drawn = (own.log() - joint.log()).to(self.server.device)

    def upper_loss(self, h: Tensor, present: Tensor, batch: Batch) -> Tensor:
        active, aligned = self.server.place, batch.aligned.to(h.device)
        own = ~aligned
        whole, there = h[own], present[own].clone()
        apart = h.new_zeros(())
        for m in range(h.shape[1]):
            rows = aligned & present[:, m]
            if m == active or int(rows.sum()) < 2:
                continue
            key, value = h[rows, active], h[rows, m]
            estimate = attend(key, key, value, others=True)
            apart = apart + (estimate - value.detach()).square().mean()
            filled = attend(whole[:, active], key, value)
            whole = torch.cat([whole[:, :m], filled[:, None], whole[:, m + 1 :]], 1)
            there[:, m] = True
        loss = super().upper_loss(h, present, batch)
        if not torch.equal(there, present[own]):
            # every row has one weight: whole, masked, or completed
            usual = len(h) + int((aligned & (present.sum(1) > 1)).sum())
            y, share = batch.y.to(h.device)[own], len(whole) / (len(whole) + usual)
            logits = self.server.fusion.logits(whole, there) + self._drawn
            if self.server.seen is not None:
                logits = logits.masked_fill(~self.server.seen, -torch.inf)
            completed = torch.nn.functional.cross_entropy(logits, y)
            loss = (1 - share) * loss + share * completed
        return loss + ESTIMATE * apart
