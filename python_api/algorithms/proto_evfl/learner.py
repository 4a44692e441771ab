"""A party's lower level: the same code for a passive party and for the active one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkernels import prototype_distance, sinkhorn
from python_api.algorithms.proto_evfl.own import OwnTerms, own_loss
from python_api.algorithms.proto_evfl.prior import em_step, histogram, mixed
from python_api.algorithms.proto_evfl.selection import CHUNK, Survey, select, soft_weights, survey
from python_api.algorithms.vertical.active import Stream

if TYPE_CHECKING:
    from python_api.algorithms.vertical.local_head import LocalHead
    from python_api.algorithms.vertical.party import EncoderParty
    from python_api.config import ProtoEvflConfig

__all__ = ["OwnRows", "lam_of", "prior_of", "weight_of_transport"]

PSEUDO_SHARE = 0.5  # pseudo-labels are taken on the cheapest half


def prior_of(
    kind: str, local: Tensor, world: Tensor, keys: ProtoEvflConfig, lam: float | None = None
) -> Tensor:
    """The class prior that `prior` names for a source of rows: its own, the global, or a mixture.

    With "none" the mixture still weighs the transport; it is only not added to logits. lam: this
    round's, `keys.lam` unless it is given.
    """
    given = keys.lam if lam is None else lam
    lam = {"local": 1.0, "global": 0.0}.get(kind, given)
    return mixed(local, world, lam=lam, floor=keys.floor, rule=keys.mix)


def lam_of(keys: ProtoEvflConfig, round: int, rounds: int) -> float:
    """The share of the local prior in a round of 1..rounds."""
    return keys.lam if keys.lam_rule == "constant" else min(0.9, round / rounds)


@dataclass
class OwnRows:
    """The rows x (n, F) that a party alone holds, and what it knows about them.

    y (n,): -1 without a label. prior (C,): of these rows, from labels or by EM. weights (C,): the
    mixed prior. kept (n,): selected for the transport.
    """

    party: EncoderParty
    keys: ProtoEvflConfig
    x: Tensor
    y: Tensor
    l_ct: float
    prior: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    kept: Tensor = field(init=False)
    table: Tensor = field(init=False)
    soft: Tensor | None = None
    guess: Tensor | None = None
    lam: float | None = None

    def __post_init__(self) -> None:
        classes, party = self.party.classes, self.party
        self.labelled = bool((self.y >= 0).any())
        even = torch.full((classes,), 1 / classes)
        self.prior = histogram(self.y, classes) if self.labelled else even
        self.weights = self.prior
        self.kept = torch.ones(len(self.x), dtype=torch.bool)
        self.table = torch.zeros(classes, 2, dtype=torch.int64)
        rows = torch.arange(len(self.x))
        self.stream = Stream(rows, seed=party.run.seed, party=party.name, purpose="own rows")

    @property
    def learns(self) -> bool:
        """Whether a lower step has anything to learn from."""
        return bool(len(self.x)) and (
            self.labelled or self.l_ct > 0 or (self.keys.pseudo > 0 and self.guess is not None)
        )

    def look(
        self, head: LocalHead, world: Tensor, share: float, visiting: Tensor | None = None
    ) -> None:
        """Once a round: prior by EM where there are no labels, mixed prior, costs, selection.

        visiting: the fused head, for pseudo-labels on which both heads agree.
        """
        party, keys = self.party, self.keys
        party.encoder.eval()

        def update(mass: Tensor, count: int) -> Tensor:
            if not self.labelled:
                self.prior = em_step(self.prior, mass.cpu(), count, keys.em)
            return self._mixed(world).to(mass.device)

        found = survey(
            party.encode,
            self.x,
            head.prototypes.detach(),
            self._mixed(world).to(party.device),
            tau=keys.tau,
            on_chunk=update,
        )
        self.weights = self._mixed(world)
        cost, guess, sure = (v.cpu() for v in (found.cost, found.guess, found.sure))
        found = type(found)(cost, guess, sure, found.mass.cpu())
        self.kept = select(found, self.weights, rule=keys.select, share=share, g=keys.g)
        self.soft = soft_weights(found) if keys.soft else None
        if keys.pseudo:
            half = select(found, self.weights, rule="cheapest", share=PSEUDO_SHARE)
            taken = guess
            if keys.guess == "agree" and visiting is not None:
                half &= self._fused_guess(visiting) == guess
            if keys.guess == "balanced":
                taken, half = self._balanced_guess(head)
            self.guess = torch.where(half & (self.y < 0), taken, -1)
        classes = party.classes
        self.table = torch.stack(
            [torch.bincount(g, minlength=classes) for g in (guess[self.kept], guess)], 1
        )

    @torch.no_grad()
    def _fused_guess(self, visiting: Tensor) -> Tensor:
        """(n,) the class that the fused head says where this party alone is present."""
        found = [
            (self.party.encode(part) @ visiting[:, :-1].T + visiting[:, -1]).argmax(1).cpu()
            for part in self.x.split(CHUNK)
        ]
        return torch.cat(found)

    @torch.no_grad()
    def _balanced_guess(self, head: LocalHead) -> tuple[Tensor, Tensor]:
        """Classes by entropic transport from the rows to the prototypes, whose masses are the mixed
        prior: (guess, the surest half of each class)."""
        h = torch.cat([self.party.encode(part) for part in self.x.split(CHUNK)])
        cost = prototype_distance(h, head.prototypes, metric="cosine")
        n = len(cost)
        even = torch.full((1, n), 1 / n, device=h.device)
        prior = self.weights.to(h.device)[None]
        plan = sinkhorn(cost[None], even, prior, eps=self.keys.tau, max_iter=200).plan()[0].cpu()
        sure, guess = (plan * n).max(1)
        found = Survey(1 - sure, guess, sure, plan.sum(0))
        flat = torch.ones_like(self.weights)
        return guess, select(found, flat, rule="class", share=PSEUDO_SHARE, g=0.0)

    def _mixed(self, world: Tensor) -> Tensor:
        return prior_of(self.keys.prior, self.prior, world, self.keys, self.lam)

    def loss(self, head: LocalHead, visiting: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Of one batch of own rows (own.py)."""
        party, keys = self.party, self.keys
        rows = self.stream.take(party.config.train.batch_size)
        party.encoder.train()
        h = party.encode(self.x[rows], noisy=True)
        prior = self.weights.to(h.device)
        corrected = keys.prior != "none"
        return own_loss(
            h,
            self.y[rows].to(h.device),
            self.kept[rows].to(h.device),
            head=head,
            visiting=visiting,
            log_prior=prior.log() if corrected else torch.zeros_like(prior),
            prior=prior,
            terms=OwnTerms(keys.local_weight, self.l_ct, keys.pseudo, keys.tau, keys.rho),
            mask=mask,
            soft=None if self.soft is None else self.soft[rows].to(h.device),
            guess=None if self.guess is None else self.guess[rows].to(h.device),
        )


def weight_of_transport(given: float | None, keys: ProtoEvflConfig, labelled: bool) -> float:
    """`l_ct` of a party: its own key, that of [proto_evfl], else 1 with labels and 0 without."""
    if given is not None:
        return given
    if keys.l_ct is not None:
        return keys.l_ct
    return 1.0 if labelled else 0.0
