"""The rounds of a vertical run: match ids, train over the bus."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from python_api.algorithms.attendance import Attendance
from python_api.algorithms.vertical.active import ActiveParty, Stream, random_subset
from python_api.algorithms.vertical.manifest import BASE
from python_api.algorithms.vertical.measuring import Measuring
from python_api.algorithms.vertical.party import PassiveParty
from python_api.config.ignored import READS_TABLES
from python_api.errors import InputError, RunFailed
from python_api.federation.bus import Payload, Replies
from python_api.federation.manifest import Manifest
from python_api.federation.seeds import seed_for

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig
    from python_api.data.vertical import PartyData, VerticalData
    from python_api.federation.bus import Federation, Party

__all__ = ["Batch", "Vertical"]

logger = logging.getLogger("fedkernels.vertical")
LEAK_ROWS = 2000  # gradients kept for the measurement of what they tell


@dataclass
class Batch:
    """Training rows of the active party. rows (B,), y (B,), present (B, M); aligned (B,): held by
    another party too."""

    rows: Tensor
    y: Tensor
    present: Tensor
    aligned: Tensor


class Vertical(Measuring):
    """The frame that all vertical algorithms fill in; by itself: split learning on aligned rows.

    A cycle is `lower` steps of every party on its own rows and `upper` steps over the bus; a round
    is as many cycles as give one pass over the active party's training rows, times `epochs`.

    switches: keys of [proto_evfl] that the algorithm sets whatever the config says.
    """

    switches: ClassVar[Mapping[str, object]] = {}

    @cached_property
    def keys(self) -> ProtoEvflConfig:
        """[proto_evfl] as this algorithm sees it: a baseline reads some keys, the rest are as
        built in, whatever the config says."""
        given, read = self.config.proto_evfl, READS_TABLES.get(self.name)
        if read is not None:
            given = type(given)(**{key: getattr(given, key) for key in read})
        return given.model_copy(update=dict(self.switches))

    def check(self) -> None:
        most, given = len(self.config.parties), self.config.proto_evfl.min_replies
        if given > most:
            raise InputError(
                f"proto_evfl.min_replies: {given} is above the number of parties; "
                f"expected 0 (all) to {most}, the active one counted"
            )

    # ---- building ---------------------------------------------------------------------------

    def parties(self, recorder: Any) -> list[Party]:
        from python_api.data.vertical import load_vertical

        self.data: VerticalData = load_vertical(self.config)
        for note in self.data.notes:
            recorder.log(note)
        return list(self.build(self.data))

    def build(self, data: VerticalData) -> list[PassiveParty]:
        """The active party as `server`, and the passive ones."""
        self.data = data
        configs = {party.name: party for party in self.config.parties}
        name = next(party.name for party in self.config.parties if party.active)
        self.server = ActiveParty(configs[name], self.config, data, self.keys)
        self.members = [
            self.make_member(configs[other], _blind(data.parties[other]), len(data.labels))
            for other in data.parties
            if other != name
        ]
        self.place = self.server.fusion.place
        self.best: dict[str, Any] | None = None
        self.sent: dict[str, list[tuple[Tensor, Tensor]]] = {}
        return self.members

    def make_member(self, party: Any, data: Any, classes: int) -> PassiveParty:
        return PassiveParty(party, self.config, data, classes)

    def manifest(self) -> Manifest:
        return Manifest(BASE)

    # ---- rounds -----------------------------------------------------------------------------

    def run(self, federation: Federation, recorder: Any) -> None:
        self.recorder = recorder
        with torch.random.fork_rng(devices=[]):
            federation.round = 0
            self.there = self._attendance(federation)
            self.match()
            self.begin_run()
            self.measure(0)
            for round in range(1, self.config.rounds + 1):
                federation.round = round
                self.there = self._attendance(federation)
                torch.manual_seed(seed_for(self.config.seed, round, self.server.name, "train"))
                self.sent = {}
                self.begin_round(round)
                self._train(round)
                self.end_round(round)
                if self.evaluates(round):
                    self.measure(round)
                recorder.round_done(round, self.state(round) | self.there.state())

    def _attendance(self, federation: Federation) -> Attendance:
        """`min_replies` counts the active party, which always answers; 0: all must answer."""
        given = self.config.proto_evfl.min_replies
        return Attendance(federation, given - 1 if given else None)

    def _train(self, round: int) -> None:
        lower, upper = self.cycle
        cycles = self.cycles
        steps, step, loss = cycles * (lower + upper), 0, 0.0
        self.server.fusion.train()
        self.server.encoder.train()
        for _ in range(cycles):
            for number in range(lower + upper):
                loss = self.lower_step() if number < lower else self.upper_step()
                self._finite(loss)
                step += 1
                self.server.passes += 1
                self.recorder.progress(
                    party=self.server.name, round=round, step=step, steps=steps, loss=loss
                )

    def _finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            round = self.there.round
            raise RunFailed(f"round {round}: the loss is {loss}; a smaller lr may help")

    @property
    def cycle(self) -> tuple[int, int]:
        """(lower, upper) steps. Without a lower level its steps are upper ones: equal passes."""
        return 0, self.keys.lower + self.keys.upper

    @property
    def cycles(self) -> int:
        """Of one round; every step, lower or upper, takes `batch_size` rows of the active party."""
        train = self.server.config.train
        steps = train.steps or train.epochs * math.ceil(self.labelled_rows / train.batch_size)
        return max(1, math.ceil(steps / sum(self.cycle)))

    @property
    def labelled_rows(self) -> int:
        """The active party's, of training."""
        return int((self.server.y["train"] >= 0).sum())

    def match(self) -> None:
        """Sends the passive parties the ids, in the clear, and learns who has which.

        They go sorted: a table's own order, say by label, is nobody's business. `asked` has the
        place of each row in what was sent, by which all later messages name it.
        """
        self.asked: dict[str, Tensor] = {}
        for part, split in self.server.splits.items():
            order = sorted(range(len(split.ids)), key=split.ids.__getitem__)
            at = torch.tensor(order, dtype=torch.int64)
            self.asked[part] = torch.empty_like(at).scatter_(0, at, torch.arange(len(at)))
            replies = self.call("match", {"split": part, "ids": [split.ids[row] for row in order]})
            for name, reply in replies.ok.items():
                self._fits("match", name, reply, "present", len(order))
                self.server.present[part][at, self.place[name]] = reply["present"]

    def begin_run(self) -> None:
        """The streams of batches: aligned rows, and the active party's own."""
        labelled = self.server.y["train"] >= 0
        aligned = self.server.aligned()
        make = {"seed": self.config.seed, "party": self.server.name}
        both, own = (labelled & aligned), (labelled & ~aligned)
        self.streams = {
            "aligned": Stream(both.nonzero()[:, 0], purpose="aligned rows", **make),
            "own": Stream(own.nonzero()[:, 0], purpose="own rows", **make),
        }

    def begin_round(self, round: int) -> None:
        """Before the steps of a round."""

    def end_round(self, round: int) -> None:
        """After them."""

    def call(self, op: str, payloads: Any = None) -> Replies:
        """To the parties that are still there; one that fails sits out the rest of the round."""
        if not self.there.parties:
            return Replies({})
        before = set(self.there.parties)
        if isinstance(payloads, dict) and payloads and set(payloads) <= set(self.place):
            payloads = {name: payloads[name] for name in self.there.parties if name in payloads}
            replies = self.there.call(op, payloads, to=tuple(payloads))
        else:
            replies = self.there.call(op, payloads)
        for name in before - set(self.there.parties):
            logger.warning("party %r is masked for the rest of the round", name)
        return replies

    def _fits(self, op: str, name: str, reply: Payload, entry: str, rows: int) -> Tensor:
        """An entry of a reply with one row for each that was asked for, which no manifest knows."""
        sent = reply[entry]
        assert isinstance(sent, Tensor)
        if len(sent) != rows:
            raise RunFailed(
                f"round {self.there.round}, op {op!r}, party {name!r}: entry {entry!r} has "
                f"{len(sent)} rows; expected the {rows} that were asked for"
            )
        return sent

    # ---- a step over the bus ----------------------------------------------------------------

    def batch(self) -> Batch:
        """`batch_size` rows, of which max(1/2, their share) are aligned."""
        aligned, own = self.streams["aligned"], self.streams["own"]
        size, total = self.server.config.train.batch_size, len(aligned) + len(own)
        share = max(0.5, len(aligned) / max(1, total))
        count = size if not len(own) else round(size * share)
        count = min(count, len(aligned)) if self.keys.rows == "aligned" else count
        return self._batch(aligned.take(count), own.take(size - count))

    def _batch(self, aligned: Tensor, own: Tensor) -> Batch:
        rows = torch.cat([aligned, own])
        server = self.server
        told = torch.arange(len(rows)) < len(aligned)
        return Batch(rows, server.y["train"][rows], server.present["train"][rows], told)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """(h (B, M, d), present (B, M), per passive party its leaf and the rows it stands for)."""
        present = batch.present.clone()
        asked = {
            member: present[:, self.place[member]].nonzero()[:, 0] for member in self.there.parties
        }
        asked = {name: at for name, at in asked.items() if len(at)}
        payloads = {
            name: {"rows": self.asked["train"][batch.rows[at]]} for name, at in asked.items()
        }
        replies = self.call("embed", payloads) if payloads else None
        there = replies.ok if replies is not None else {}
        for name, m in self.place.items():
            if name != self.server.name and name not in there:
                present[:, m] = False
        own = self.server.encode(self.server.splits["train"].x[batch.rows], noisy=True)
        columns: list[Tensor] = [own] * len(self.place)
        leaves: dict[str, tuple[Tensor, Tensor]] = {}
        for name, m in self.place.items():
            if name == self.server.name:
                continue
            column = own.new_zeros(own.shape)
            if name in there:
                sent = self._fits("embed", name, there[name], "h", len(asked[name]))
                leaf = sent.to(own.device).requires_grad_()
                leaves[name] = leaf, asked[name]
                column = column.index_copy(0, asked[name].to(own.device), leaf)
            columns[m] = column
        return torch.stack(columns, 1), present.to(own.device), leaves

    def upper_step(self) -> float:
        """One batch over the bus: representations up, their gradients down, everybody steps."""
        batch = self.batch()
        h, present, leaves = self.embed(batch)
        loss = self.upper_loss(h, present, batch)
        self._finite(float(loss.detach()))  # before a gradient that is none is sent
        loss.backward()
        grads = {}
        for name, (leaf, at) in leaves.items():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            sent = self.outgoing(grad, len(h))
            self._remember(name, sent, batch.y[at])
            grads[name] = {"grad": sent.cpu()}
        if grads:
            self.call("backward", grads)
        self.server.optimizer.step()
        return float(loss.detach())

    def outgoing(self, grad: Tensor, rows: int) -> Tensor:
        """The gradient (b, d) of a mean over `rows` rows, as it is sent to a passive party."""
        return grad

    def _remember(self, name: str, grad: Tensor, y: Tensor) -> None:
        kept = self.sent.setdefault(name, [])
        if sum(len(y) for _, y in kept) < LEAK_ROWS:
            kept.append((grad.detach().cpu().clone(), y))

    def upper_loss(self, h: Tensor, present: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the fused head on aligned rows."""
        return self.fused_loss(h, present, batch.y.to(h.device), batch.aligned.to(h.device))

    def fused_loss(self, h: Tensor, present: Tensor, y: Tensor, aligned: Tensor) -> Tensor:
        """Mean cross-entropy; each row's logits are shifted by the log prior of its source."""
        logits = self.server.fusion.logits(h, present) + self.shift(aligned)
        seen = self.server.seen
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        return F.cross_entropy(logits, y, weight=self.class_weight(), ignore_index=-1)

    def class_weight(self) -> Tensor | None:
        return None

    def shift(self, aligned: Tensor) -> Tensor | float:
        """(B, C) added to the logits in training; aligned (B,) bool says where a row comes from."""
        return 0.0

    def lower_step(self) -> float:
        """One step of every party on its own rows; returns the active party's loss."""
        raise RuntimeError(f"{self.name} has no lower level")

    def masked_copies(self, h: Tensor, present: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `at` (bool) once more, each with a random part of its parties."""
        kept = random_subset(present[at])
        return h[at] * kept[:, :, None].to(h), kept


def _blind(data: PartyData) -> PartyData:
    """Without what the simulation alone knows."""
    return replace(data, truth=torch.empty(0, dtype=torch.int64))
