"""Proto-EVFL: two levels, local prototypes, priors, selection, gate, and unseen classes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fedkernels import class_mean
from python_api.algorithms.proto_evfl.learner import OwnRows, lam_of, prior_of, weight_of_transport
from python_api.algorithms.proto_evfl.noise import GradientNoise
from python_api.algorithms.proto_evfl.party import ProtoParty
from python_api.algorithms.proto_evfl.prior import histogram
from python_api.algorithms.proto_evfl.selection import ramp
from python_api.algorithms.vertical.algorithm import Batch, Vertical
from python_api.algorithms.vertical.fusion import LinearHead, PrototypeHead
from python_api.algorithms.vertical.manifest import BASE, LOWER, ROUND
from python_api.algorithms.vertical.measuring import prototype_distances
from python_api.algorithms.vertical.unseen import relation_of
from python_api.federation.manifest import Manifest

if TYPE_CHECKING:
    from python_api.algorithms.vertical.party import PassiveParty
    from python_api.data.vertical import VerticalData

__all__ = ["ProtoEvfl"]


class ProtoEvfl(Vertical):
    """Every row of the table in docs/algorithms.md is a key of [proto_evfl]."""

    name = "proto_evfl"
    rows_class: ClassVar[type[OwnRows]] = OwnRows
    party_class: ClassVar[type[ProtoParty]] = ProtoParty

    def build(self, data: VerticalData) -> list[PassiveParty]:
        members = super().build(data)
        classes = len(data.labels)
        self.world = torch.full((classes,), 1 / classes)
        self.aligned_prior = self.world
        self.priors: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.withheld: dict[str, int] = {}
        self.courses: dict[str, list[Tensor]] = {}
        self.noise: GradientNoise | None = None
        self.lam = lam_of(self.keys, 1, self.config.rounds)
        return members

    def make_member(self, party: Any, data: Any, classes: int) -> PassiveParty:
        return self.party_class(party, self.config, data, classes, keys=self.keys)

    def manifest(self) -> Manifest:
        return Manifest(BASE | ROUND | LOWER)

    @property
    def cycle(self) -> tuple[int, int]:
        return self.keys.lower, self.keys.upper

    # ---- the run ----------------------------------------------------------------------------

    def begin_run(self) -> None:
        super().begin_run()
        server = self.server
        aligned, y = server.aligned(), server.y["train"]
        self.aligned_prior = histogram(y[aligned], server.classes)
        configs = {party.name: party for party in self.config.parties}
        x = server.splits["train"].x
        self.own = self.rows_class(
            server,
            self.keys,
            x[~aligned],
            y[~aligned],
            weight_of_transport(configs[server.name].l_ct, self.keys, True),
        )
        self.world = histogram(y, server.classes)
        fusion = server.fusion
        if server.seen is not None:
            fusion.known[:] = server.seen
            fusion.votes.fill_(True)
            if isinstance(fusion.head, PrototypeHead):
                fusion.head.known.copy_(server.seen)
        self.priors = {server.name: self.own.prior}
        if self.keys.gradients == "noise":
            self.noise = GradientNoise(self.keys, self._releases())
        self._weigh()

    def begin_round(self, round: int) -> None:
        """Prototypes and the global prior go out; every party looks at its own rows."""
        fusion = self.server.fusion
        share = ramp(self.keys.q0, round, self.config.rounds)
        self.lam = lam_of(self.keys, round, self.config.rounds)
        self.own.lam = self.lam
        payloads = {
            name: {
                "head": fusion.local[self.place[name]].pack().cpu(),
                "prior": self.world,
                "keep": share,
                "lam": self.lam,
            }
            for name in self.there.parties
        }
        agrees = self.visits and self.keys.pseudo > 0 and self.keys.guess == "agree"
        for name, sent in payloads.items() if agrees else ():
            sent["fused"] = fusion.head.visiting(self.place[name]).detach().cpu()
        replies = self.call("begin", payloads) if payloads else None
        if replies is not None:
            self.kept |= {name: reply["kept"] for name, reply in replies.ok.items()}
        place = self.server.place
        fused = fusion.head.visiting(place).detach() if agrees else None
        self.own.look(fusion.local[place], self.world, share, fused)
        self.kept[self.server.name] = self.own.table

    def lower_step(self) -> float:
        server, fusion = self.server, self.server.fusion
        visits = self.visits
        loss = torch.zeros(())
        if self.own.learns:
            visiting = fusion.head.visiting(server.place) if visits else None
            loss = self.own.loss(fusion.local[server.place], visiting, server.seen)
            loss.backward()
        payloads: dict[str, Any] = {}
        slices: dict[str, Tensor] = {}
        for name in self.there.parties:
            payloads[name] = {}
            if visits and name in self.visited:
                slices[name] = fusion.head.visiting(self.place[name])
                payloads[name] = {"head": slices[name].detach().cpu()}
        payloads = {name: sent for name, sent in payloads.items() if name in self.learning}
        replies = self.call("lower", payloads) if payloads else None
        for name, reply in (replies.ok if replies is not None else {}).items():
            grad = reply.get("grad")
            if isinstance(grad, Tensor) and name in slices:
                slices[name].backward(grad.to(server.device))
        server.optimizer.step()
        return float(loss.detach())

    def end_round(self, round: int) -> None:
        """Priors, counts and prototypes come in; the global prior and the mixtures follow."""
        replies = self.call("share") if self.there.parties else None
        rows = {self.server.name: len(self.own.x)}
        self.priors[self.server.name] = self.own.prior
        for name, reply in (replies.ok if replies is not None else {}).items():
            self.priors[name], rows[name] = reply["prior"], int(reply["own"])
            if "withheld" in reply:
                self.withheld[name] = int(reply["withheld"])
            self._merge(name, reply)
        total = sum(rows.values())
        if total:
            self.world = sum(rows[name] / total * self.priors[name] for name in rows)
        self._weigh()
        self._relate(replies.ok if replies is not None else {})

    # ---- terms of the upper level -----------------------------------------------------------

    def upper_loss(self, h: Tensor, present: Tensor, batch: Batch) -> Tensor:
        """Fused head on whole and masked rows, and the local heads on the rows they are given."""
        server, fusion = self.server, self.server.fusion
        y, aligned = batch.y.to(h.device), batch.aligned.to(h.device)
        if self.keys.rows == "aligned":
            loss = self.fused_loss(h, present, y, aligned)
            self._follow(h, present, y)
            if self.keys.pull and isinstance(fusion.head, PrototypeHead):
                loss = loss + self.keys.pull * self._pull(fusion.head, h, present, y)
            return loss
        more, kept = self.masked_copies(h, present, aligned & (present.sum(1) > 1))
        at = aligned & (present.sum(1) > 1)
        loss = self.fused_loss(
            torch.cat([h, more]),
            torch.cat([present, kept]),
            torch.cat([y, y[at]]),
            torch.cat([aligned, aligned[at]]),
        )
        if self.keys.local == "none":
            self._follow(h, present, y)
            return loss
        shift = self._log(self.aligned_prior_mixed)
        for name, m in self.place.items():
            for source in (True, False):
                rows = present[:, m] & (aligned == source)
                if not bool(rows.any()):
                    continue
                log_prior = shift if source else self._log(self.mixtures[name])
                part = fusion.local[m].loss(h[rows, m], y[rows], log_prior, server.seen)
                loss = loss + self.keys.local_weight * part * rows.sum() / present[:, m].sum()
        return loss

    def _follow(self, h: Tensor, present: Tensor, y: Tensor) -> None:
        """Moving class means of every party's representations, where nothing else moves them."""
        for m, head in enumerate(self.server.fusion.local):
            head.follow(h[present[:, m], m].detach(), y[present[:, m]])

    def _pull(self, head: PrototypeHead, h: Tensor, present: Tensor, y: Tensor) -> Tensor:
        """|nu_c - mean of the fused rows of c|^2, mean over the classes in the batch."""
        at = y >= 0
        z = head.joined(h[at], self.server.fusion.gates(h[at], present[at]).mean(2, keepdim=True))
        found = class_mean(z[:, 0], y[at], len(head.prototypes))
        there = found.count > 0
        return (head.prototypes[there] - found.mean[there]).square().sum(1).mean()

    def shift(self, aligned: Tensor) -> Tensor | float:
        if self.keys.prior == "none":
            return 0.0
        both = torch.stack(
            [self._log(self.mixtures[self.server.name]), self._log(self.aligned_prior_mixed)]
        )
        return both[aligned.long()]

    def _log(self, prior: Tensor) -> Tensor:
        """(C,) as it is added to logits; 0 where the prior is not used so."""
        if self.keys.prior == "none":
            return torch.zeros_like(prior).to(self.server.device)
        return prior.log().to(self.server.device)

    def outgoing(self, grad: Tensor, rows: int) -> Tensor:
        return grad if self.noise is None else self.noise(grad, rows)

    def _releases(self) -> int:
        """How often the run sends a gradient of the aligned row that it sends most often."""
        aligned = len(self.streams["aligned"])
        sent = min(self.server.config.train.batch_size, aligned)
        steps = self.config.rounds * self.cycles * self.cycle[1]
        return math.ceil(steps * sent / max(1, aligned)) + 1

    # ---- priors and prototypes --------------------------------------------------------------

    @property
    def visits(self) -> bool:
        """Whether the fused head goes to the parties in lower steps."""
        return isinstance(self.server.fusion.head, LinearHead) and self.keys.rows == "masked"

    @cached_property
    def labelled(self) -> set[str]:
        """Passive parties with labels of their own, as their config declares."""
        return {party.name for party in self.config.parties if party.label and not party.active}

    @cached_property
    def visited(self) -> set[str]:
        """Passive parties that the fused head is sent to in a lower step."""
        return self.learning if self.keys.pseudo else self.labelled

    @cached_property
    def learning(self) -> set[str]:
        """Passive parties to which a lower step means anything."""
        return {
            party.name
            for party in self.config.parties
            if not party.active
            and (
                party.label
                or self.keys.pseudo
                or weight_of_transport(party.l_ct, self.keys, bool(party.label))
            )
        }

    def _weigh(self) -> None:
        """The mixed prior of every source of rows, and what the gate and the test see of it."""
        keys, fusion = self.keys, self.server.fusion
        self.mixtures = {
            name: prior_of(
                keys.prior, self.priors.get(name, self.world), self.world, keys, self.lam
            )
            for name in self.place
        }
        self.aligned_prior_mixed = prior_of(
            keys.prior, self.aligned_prior, self.world, keys, self.lam
        )
        for name, m in self.place.items():
            fusion.log_prior[m] = self._log(self.mixtures[name])
        if keys.prior == "test":
            fusion.log_test.copy_(self._log(self.world))

    def _merge(self, name: str, reply: Any) -> None:
        """A party's prototypes into the server's, by how many labelled rows each has seen."""
        server, m = self.server, self.place[name]
        counts, sent = reply.get("counts"), reply.get("prototypes")
        if not isinstance(counts, Tensor) or not isinstance(sent, Tensor):
            return
        y = server.y["train"][server.present["train"][:, m]]
        mine = torch.bincount(y[y >= 0], minlength=server.classes).float()
        head = server.fusion.local[m]
        share = (counts / (counts + mine).clamp_min(1))[:, None].to(server.device)
        # where this side has no row of a class, what it holds of it is its random start
        packed, told = head.pack(), (counts > 0).to(server.device)
        mean = (1 - share) * packed + share * sent.to(server.device)
        head.unpack(torch.where(told[:, None], mean, packed))
        server.fusion.known[m] |= told

    def _relate(self, replies: Any) -> None:
        """Mean cosine of class prototypes over the parties that know both classes."""
        fusion = self.server.fusion
        total = torch.zeros(fusion.classes, fusion.classes)
        count = torch.zeros_like(total)
        for name, m in self.place.items():
            sent = replies.get(name, {}).get("relations")
            if isinstance(sent, Tensor):
                found, known = sent, sent.diagonal() > 0
            else:
                known = fusion.known[m].cpu()
                found = relation_of(fusion.local[m].prototypes.detach().cpu(), known)
            total += found
            count += (known[:, None] & known[None, :]).float()
        fusion.relation.copy_(total / count.clamp_min(1))
        if isinstance(fusion.head, PrototypeHead):
            fusion.head.relation.copy_(fusion.relation)

    # ---- what a report reads ----------------------------------------------------------------

    def state(self, round: int) -> dict[str, object]:
        told = super().state(round)
        told["prior/global"] = self.world
        for name in self.place:
            told[f"prior/{name}/mixed"] = self.mixtures[name]
            if name in self.priors:
                told[f"prior/{name}/estimated"] = self.priors[name]
            if name in self.kept:
                told[f"selected/{name}"] = self.kept[name]
            if name in self.withheld:
                told[f"withheld/{name}"] = self.withheld[name]
            told |= self._truth(name)
            for key in ("selected", "selected_true"):  # the share ramps to 1: one round says little
                if isinstance(table := told.get(f"{key}/{name}"), Tensor):
                    course = self.courses.setdefault(f"{key}_rounds/{name}", [])
                    course.append(table.clone())
                    told[f"{key}_rounds/{name}"] = torch.stack(course)
        return told

    def _truth(self, name: str) -> dict[str, object]:
        """Where the simulation knows the labels of a party's own rows: their shares, and which were
        selected."""
        truth = self.data.parties[name].truth
        if truth is None:
            return {}
        member = next((each for each in self.members if each.name == name), None)
        if member is None:
            own, rows = self.own, (~self.server.aligned()).nonzero()[:, 0]
        else:
            own, rows = member.own_rows, member.own  # type: ignore[attr-defined]
        found = truth[rows]
        known = found >= 0
        if not bool(known.any()):
            return {}
        count = torch.bincount(found[known], minlength=self.server.classes)
        kept = torch.bincount(found[known & own.kept], minlength=self.server.classes)
        return {
            f"prior/{name}/true": count / count.sum(),
            f"selected_true/{name}": torch.stack([kept, count], 1),
        }

    def prototype_leak(self, member: PassiveParty) -> dict[str, float]:
        own = member.own_rows  # type: ignore[attr-defined]
        if not own.labelled or self.keys.share != "prototypes":
            return {}
        counts = torch.bincount(own.y[own.y >= 0], minlength=member.classes)
        enough = counts >= self.keys.withhold
        if not bool(enough.any()):
            return {}
        with torch.no_grad():
            member.encoder.eval()
            h = member.encode(own.x[:2000]).cpu()
        return prototype_distances(member.head.prototypes.detach().cpu()[enough], h)  # type: ignore[attr-defined]

    def privacy(self) -> list[str]:
        return [] if self.noise is None else self.noise.told()
