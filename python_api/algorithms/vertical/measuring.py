"""What a vertical run measures, and what its report is shown, on the side that has the labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from python_api.algorithms.base import Algorithm
from python_api.algorithms.vertical.measure import decision_metrics, leakage, nearest_row, plane

if TYPE_CHECKING:
    from python_api.algorithms.attendance import Attendance
    from python_api.algorithms.vertical.active import ActiveParty
    from python_api.algorithms.vertical.party import PassiveParty
    from python_api.data.vertical import VerticalData
    from python_api.federation.bus import Payload, Replies

__all__ = ["Measuring", "prototype_distances"]

CHUNK = 4096  # rows of one message


class Measuring(Algorithm):
    """The part of a vertical algorithm that trains nothing. The attributes are `Vertical`'s."""

    server: ActiveParty
    members: list[PassiveParty]
    data: VerticalData
    recorder: Any
    there: Attendance
    place: dict[str, int]
    best: dict[str, Any] | None
    sent: dict[str, list[tuple[Tensor, Tensor]]]

    @abstractmethod
    def call(self, op: str, payloads: Any = None) -> Replies:
        """Runs an op at the parties that are still there."""

    @abstractmethod
    def _fits(self, op: str, name: str, reply: Payload, entry: str, rows: int) -> Tensor:
        """A reply's entry, which has a row for each that was asked for."""

    @torch.no_grad()
    def represent(self, part: str) -> tuple[Tensor, Tensor]:
        """(h (n, M, d), present (n, M)) of one split, without noise."""
        server = self.server
        present, n = server.present[part].clone(), len(server.splits[part].ids)
        h = torch.zeros(n, len(self.place), server.width)
        server.encoder.eval()
        for start in range(0, n, CHUNK):
            rows = torch.arange(start, min(n, start + CHUNK))
            h[rows, self.place[server.name]] = server.encode(server.splits[part].x[rows]).cpu()
            asked = {}
            for name in self.there.parties:
                held = rows[present[rows, self.place[name]]]
                if len(held):
                    asked[name] = held
            payloads = {
                name: {"split": part, "rows": self.asked[part][held]}
                for name, held in asked.items()
            }
            replies = self.call("evaluate", payloads) if payloads else None
            for name, held in asked.items():
                m = self.place[name]
                if replies is not None and name in replies.ok:
                    h[held, m] = self._fits("evaluate", name, replies.ok[name], "h", len(held))
        for name, m in self.place.items():
            if name != server.name and name not in self.there.parties:
                present[:, m] = False
        return h.to(server.device), present.to(server.device)

    @torch.no_grad()
    def measure(self, round: int) -> None:
        """Metric rows of a round; with keep = "best", test rows are those of the best round so far
        by validation."""
        server = self.server
        server.fusion.eval()
        rows: list[tuple[str, str, str, float]] = []
        validation: dict[str, float] = {}
        for part in ("validation", "test"):
            usable = server.y[part] >= 0
            if not bool(usable.any()):
                continue
            h, present = (value[usable] for value in self.represent(part))
            y = server.y[part][usable]
            scores = self.decide(h, present).cpu()
            found = decision_metrics(scores, y, server.labels, server.unseen)
            rows += [(server.name, part, name, value) for name, value in found.items()]
            if part == "validation":
                validation = found
                continue
            gates = server.fusion.gates(h, present).cpu()
            self.looked = {"h": h.cpu(), "y": y, "present": present.cpu(), "gates": gates}
            rows += self.party_rows(part)
        passes = {member.name: member.passes for member in self.members}
        passes[server.name] = server.passes
        rows += [(name, "train", "passes", float(count)) for name, count in passes.items()]
        for name, part, metric, value in self._kept_rows(round, rows, validation):
            self.recorder.metric(
                round=round, party=name, phase="global", split=part, metric=metric, value=value
            )

    def party_rows(self, part: str) -> list[tuple[str, str, str, float]]:
        """(party, split, metric, value): each party's weight, and what it decides alone."""
        found: list[tuple[str, str, str, float]] = []
        h, y, present, gates = (self.looked[key] for key in ("h", "y", "present", "gates"))
        fusion = self.server.fusion
        for name, m in self.place.items():
            at = present[:, m]
            found.append((name, part, "gate", float(gates[:, m].mean())))
            if bool(at.any()):
                scores = fusion.alone(h[at].to(self.server.device), m).cpu()
                alone = decision_metrics(scores, y[at], ())
                for metric in ("accuracy", "balanced_accuracy"):
                    found.append((name, part, f"local_{metric}", alone[metric]))
        return found

    def _kept_rows(
        self, round: int, rows: list[tuple[str, str, str, float]], validation: Mapping[str, float]
    ) -> list[tuple[str, str, str, float]]:
        """`rows`, their test part that of the round that is kept.

        A round is kept whole: not the one before training, nor one that a party did not finish,
        whose model would be of another round.
        """
        if self.server.config.train.keep != "best" or not validation or round == 0:
            return rows
        whole = len(self.there.parties) == len(self.members)
        if not whole:
            return rows if self.best is None else self._of_best(rows)
        rank = (
            validation.get("auc", validation["balanced_accuracy"]),
            -validation["loss"],
        )
        if self.best is None or rank > self.best["rank"]:
            test = [row for row in rows if row[1] == "test"]
            self.best = {"rank": rank, "round": round, "test": test}
            self.call("keep")
            self.server.keep({})
        return self._of_best(rows)

    def _of_best(
        self, rows: list[tuple[str, str, str, float]]
    ) -> list[tuple[str, str, str, float]]:
        assert self.best is not None
        return [row for row in rows if row[1] != "test"] + self.best["test"]

    def decide(self, h: Tensor, present: Tensor) -> Tensor:
        """(n, C) scores, the largest is the decision."""
        return self.server.fusion.scores(h, present)

    # ---- what a report reads ----------------------------------------------------------------

    def state(self, round: int) -> dict[str, object]:
        """The server's part of a checkpoint, and what the report shows of this round."""
        server = self.server
        told: dict[str, object] = {
            "labels": list(server.labels),
            "ids": dict(self.data.counts),
            "notes": list(self.data.notes),
            "privacy": self.privacy(),
        }
        if self.best is not None:
            told["best_round"] = self.best["round"]
        looked = getattr(self, "looked", None)
        if looked is not None:
            told |= self._pictures(looked)
        if round == self.config.rounds:
            told |= self._leaks()
        return told

    def _pictures(self, looked: Mapping[str, Tensor]) -> dict[str, object]:
        told: dict[str, object] = {}
        h, y, present, gates = (looked[key] for key in ("h", "y", "present", "gates"))
        classes = len(self.server.labels)
        for name, m in self.place.items():
            by_class = torch.zeros(classes)
            for c in range(classes):
                at = y == c
                if bool(at.any()):
                    by_class[c] = gates[at, m].mean()
            told[f"gate/{name}"] = by_class
            at = present[:, m]
            if int(at.sum()) >= 3:
                mu = self.server.fusion.local[m].prototypes.detach().cpu()
                rows, labels, marks = plane(h[at, m], y[at], mu)
                told |= {
                    f"plane/{name}/rows": rows.contiguous(),
                    f"plane/{name}/labels": labels.contiguous(),
                    f"plane/{name}/prototypes": marks.contiguous(),
                }
        return told

    def _leaks(self) -> dict[str, object]:
        """Measured here because labels are: see docs/federation.md."""
        told: dict[str, object] = {}
        for member in self.members:
            found: dict[str, float] = {}
            if self.sent.get(member.name):
                grads, labels = (
                    torch.cat(part) for part in zip(*self.sent[member.name], strict=True)
                )
                at = labels >= 0
                found = leakage(grads[at], labels[at], len(self.server.labels))
            found |= self.prototype_leak(member)
            if found:
                told[f"leak/{member.name}"] = found
        return told

    def prototype_leak(self, member: PassiveParty) -> dict[str, float]:
        """How close what a party shares lies to one of its rows; empty where nothing is."""
        return {}

    def privacy(self) -> list[str]:
        """Sentences on protection that the report prints."""
        return []


def prototype_distances(prototypes: Tensor, h: Tensor) -> dict[str, float]:
    """`nearest_row` under the names that the report reads."""
    shared, between = nearest_row(prototypes, h)
    return {"prototype_distance": shared, "row_distance": between}
