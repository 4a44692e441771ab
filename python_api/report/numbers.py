"""Derives the figures that the report shows from the rows of a run folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from python_api.report.reading import RunData

__all__ = [
    "Coverage",
    "Headline",
    "TrafficTotal",
    "as_array",
    "coverage",
    "headline",
    "in_party_order",
    "relations",
    "round_seconds",
    "series",
    "traffic_per_round",
    "traffic_totals",
]

BEFORE = "before"
T = TypeVar("T")


@dataclass(frozen=True)
class Headline:
    """A party's headline: a metric on the test split before training and in the last row."""

    party: str
    before: float | None
    last: float | None
    last_round: int | None = None
    phase: str = ""

    @property
    def gain(self) -> float | None:
        if self.before is None or self.last is None:
            return None
        return self.last - self.before


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _round(row: Mapping[str, object]) -> int | None:
    value = row.get("round")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def headline(
    run: RunData, party: str, *, metric: str | None = None, split: str = "test"
) -> Headline:
    """The party's first row of round 0 and its last row in file order (the one that counts).

    metric: by default the run's headline metric.
    """
    metric = run.headline_metric if metric is None else metric
    before = last = None
    last_round = None
    phase = ""
    for row in run.metrics:
        if (row.get("party"), row.get("metric"), row.get("split")) != (
            party,
            metric,
            split,
        ):
            continue
        value, at = _number(row.get("value")), _round(row)
        if at is None:
            continue
        if at == 0:
            before = value if before is None else before
        else:
            last, last_round, phase = value, at, str(row.get("phase", ""))
    return Headline(party=party, before=before, last=last, last_round=last_round, phase=phase)


def series(
    run: RunData, party: str, metric: str, *, split: str = "test"
) -> dict[str, list[tuple[int, float]]]:
    """``{phase: [(round, value), ...]}``; round 0 stands under ``"before"``.

    A round that reports a phase twice keeps its last row, as the headline does.
    """
    found: dict[str, dict[int, float]] = {}
    for row in run.metrics:
        if (row.get("party"), row.get("metric"), row.get("split")) != (
            party,
            metric,
            split,
        ):
            continue
        value, at = _number(row.get("value")), _round(row)
        if value is None or at is None:
            continue
        phase = BEFORE if at == 0 else str(row.get("phase", ""))
        found.setdefault(phase, {})[at] = value
    return {phase: sorted(points.items()) for phase, points in found.items()}


@dataclass(frozen=True)
class TrafficTotal:
    """Messages and bytes of one group of traffic rows."""

    messages: int = 0
    payload: int = 0
    wire: int = 0

    def plus(self, row: Mapping[str, object]) -> TrafficTotal:
        payload, wire = _number(row.get("bytes")), _number(row.get("wire_bytes"))
        return TrafficTotal(
            self.messages + 1,
            self.payload + int(payload or 0),
            self.wire + int(wire or 0),
        )


def traffic_totals(run: RunData, keys: Sequence[str]) -> dict[tuple[str, ...], TrafficTotal]:
    """Totals of the traffic rows grouped by `keys`, in the order of first appearance."""
    totals: dict[tuple[str, ...], TrafficTotal] = {}
    for row in run.traffic:
        group = tuple(str(row.get(key, "")) for key in keys)
        totals[group] = totals.get(group, TrafficTotal()).plus(row)
    return totals


def traffic_per_round(run: RunData) -> dict[int, dict[str, int]]:
    """``{round: {"up": payload bytes, "down": payload bytes}}``."""
    rounds: dict[int, dict[str, int]] = {}
    for row in run.traffic:
        at, direction = _round(row), row.get("direction")
        if at is None or direction not in ("up", "down"):
            continue
        entry = rounds.setdefault(at, {"down": 0, "up": 0})
        entry[str(direction)] += int(_number(row.get("bytes")) or 0)
    return dict(sorted(rounds.items()))


def round_seconds(run: RunData) -> dict[int, float]:
    """``{round: seconds from the start of the run until the round's last measurement}``."""
    rounds: dict[int, float] = {}
    for row in run.metrics:
        seconds, at = _number(row.get("seconds")), _round(row)
        if seconds is not None and at is not None:
            rounds[at] = max(rounds.get(at, 0.0), seconds)
    return dict(sorted(rounds.items()))


def as_array(value: object) -> NDArray[np.float64] | None:
    """A tensor or array of the checkpoint as float64, ``None`` for anything else."""
    try:
        numpy = value.detach().cpu().double().numpy() if hasattr(value, "detach") else value
        return np.asarray(numpy, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _by_party(state: Mapping[str, object], prefix: str) -> Iterable[tuple[str, object]]:
    for name, value in state.items():
        if name.startswith(prefix):
            yield name[len(prefix) :], value


def relations(run: RunData) -> dict[str, NDArray[np.float64]]:
    """``{party: P_k}``, each ``(L*, L_k)``: row = shared layer, column = the party's layer."""
    found = {}
    for party, value in _by_party(run.state, "P/"):
        matrix = as_array(value)
        if matrix is not None and matrix.ndim == 2 and matrix.size:
            found[party] = matrix
    return in_party_order(run, found)


@dataclass(frozen=True)
class Coverage:
    """How the entries of the shared ``R x R`` middle are used in one module slot.

    Attributes:
        slot: the slot's name.
        parties: the parties that adapt this slot.
        users: ``(R, R)`` integers, in how many of these parties at least one layer selected the
            entry in the last round.
    """

    slot: str
    parties: tuple[str, ...]
    users: NDArray[np.int64]

    def share(self, n: int) -> float:
        """The share of entries that exactly `n` parties use."""
        return float((self.users == n).mean())


def coverage(run: RunData) -> list[Coverage]:
    """One entry per module slot that some party adapts, in the order of the first party's slots."""
    size = _middle_rank(run)
    if size is None:
        return []
    selected = {party: as_array(value) for party, value in _by_party(run.state, "omega/")}
    names = {party: _names(value) for party, value in _by_party(run.state, "slots/")}
    users: dict[str, NDArray[np.int64]] = {}
    parties: dict[str, list[str]] = {}
    for party, omega in in_party_order(run, selected).items():
        if omega is None or omega.ndim != 3 or len(names.get(party, ())) != omega.shape[1]:
            continue
        entries = omega.astype(np.int64)
        if entries.size and (entries.min() < 0 or entries.max() >= size * size):
            continue
        for position, slot in enumerate(names[party]):
            grid = users.setdefault(slot, np.zeros(size * size, dtype=np.int64))
            grid[np.unique(entries[:, position])] += 1
            parties.setdefault(slot, []).append(party)
    return [
        Coverage(slot=slot, parties=tuple(parties[slot]), users=grid.reshape(size, size))
        for slot, grid in users.items()
    ]


def _middle_rank(run: RunData) -> int | None:
    """R of the shared tensors; several groups of parties may each have one of their own."""
    for name, value in run.state.items():
        if name == "G" or name.startswith("G/"):
            shared = as_array(value)
            if shared is not None and shared.ndim == 4:
                return int(shared.shape[-1])
    return None


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in value.replace(",", " ").split() if part)
    if isinstance(value, Sequence):
        return tuple(str(part) for part in value)
    return ()


def in_party_order(run: RunData, found: Mapping[str, T]) -> dict[str, T]:
    order = {party: position for position, party in enumerate(run.parties)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
