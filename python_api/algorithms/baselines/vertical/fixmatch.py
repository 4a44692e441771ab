"""Masked training, and pseudo-labels on rows without a label (FixMatch, in little)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from python_api.algorithms.baselines.vertical.masked import MaskedParty, VflMasked
from python_api.algorithms.proto_evfl.learner import OwnRows
from python_api.algorithms.vertical.active import Stream
from python_api.algorithms.vertical.local_head import LocalHead

__all__ = ["FixmatchLite", "FixmatchParty", "PseudoRows", "surest_half"]

WEIGHT = 1.0  # of the pseudo-labels' loss
STRONG = 2.0  # times the noise of all other steps


def surest_half(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, guesses): of n rows the ceil(n / 2) whose largest probability is highest.

    >>> surest_half(torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.5]]))
    (tensor([1, 2]), tensor([0, 1]))
    """
    sure, guess = torch.softmax(logits, 1).max(1)
    rows = torch.argsort(sure, descending=True, stable=True)[: math.ceil(len(sure) / 2)]
    return rows, guess[rows]


class PseudoRows(OwnRows):
    """Own rows of which those without a label are guessed by the visiting head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        open_rows = (self.y < 0).nonzero()[:, 0]
        party = self.party
        self.open = Stream(
            open_rows, seed=party.run.seed, party=party.name, purpose="rows without labels"
        )

    @property
    def learns(self) -> bool:
        return bool(len(self.x))

    def loss(self, head: LocalHead, visiting: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Labelled rows as ever, and one batch without labels: the surest half of the guesses on
        clean rows are the labels of the same rows under twice the noise."""
        party = self.party
        loss = super().loss(head, visiting, mask) if self.labelled else torch.zeros(())
        if visiting is None or not len(self.open):
            return loss
        x = self.x[self.open.take(party.config.train.batch_size)]

        def logits(h: Tensor, head: Tensor) -> Tensor:
            found = h @ head[:, :-1].T + head[:, -1]
            return found if mask is None else found.masked_fill(~mask, -torch.inf)

        with torch.no_grad():
            party.encoder.eval()
            rows, guess = surest_half(logits(party.encode(x), visiting))
        party.encoder.train()
        found = logits(party.encode(x[rows.cpu()], noisy=True, scale=STRONG), visiting)
        if self.keys.prior != "none":
            found = found + self.weights.log().to(found.device)
        return loss + WEIGHT * torch.nn.functional.cross_entropy(found, guess)


class FixmatchParty(MaskedParty):
    rows_class = PseudoRows


class FixmatchLite(VflMasked):
    """`vfl_masked` (with its `adjust`), and pseudo-labels per party on its unlabelled own rows.

    What travels: in every lower step each passive party gets the fused head as it is to a row that
    this party alone holds, (C, d + 1) numbers. Its gradient comes back from parties with labels
    alone; what a party guesses moves its own encoder and stays where it is.
    """

    name = "fixmatch_lite"
    rows_class = PseudoRows
    party_class = FixmatchParty

    @property
    def learning(self) -> set[str]:
        return {member.name for member in self.members}

    @property
    def visited(self) -> set[str]:
        return self.learning
