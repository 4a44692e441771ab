"""What a vertical run's checkpoint and metrics say by class, as arrays that charts can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from python_api.report.numbers import as_array, headline, in_party_order, series
from python_api.report.reading import RunData

__all__ = [
    "Plane",
    "Prior",
    "Recall",
    "active_party",
    "alone",
    "class_names",
    "gates",
    "leakage",
    "lines_of",
    "planes",
    "priors",
    "recalls",
    "selection_courses",
    "selections",
    "whole_numbers",
]

Floats = NDArray[np.float64]
_RECALL = "recall_"
SHOWN = 300  # points of a plane; more hide one another


def active_party(run: RunData) -> str:
    """The name of the party that holds the label; `""` if the configuration names none."""
    for party in run.configured_parties:
        if party.get("active") is True:
            return str(party.get("name", ""))
    return ""


def class_names(run: RunData) -> tuple[str, ...]:
    """The label space: of the checkpoint, else of the configuration, else of the recalls."""
    data = run.config.get("data")
    for value in (run.state.get("labels"), data.get("labels") if isinstance(data, Mapping) else ()):
        if isinstance(value, list | tuple) and value:
            return tuple(str(name) for name in value)
    names = (str(row.get("metric", "")) for row in run.metrics)
    return tuple(
        dict.fromkeys(name.removeprefix(_RECALL) for name in names if name.startswith(_RECALL))
    )


def lines_of(run: RunData, key: str) -> tuple[str, ...]:
    """A list of sentences of the checkpoint, such as `notes`."""
    value = run.state.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(str(line) for line in value) if isinstance(value, list | tuple) else ()


def whole_numbers(run: RunData, key: str) -> dict[str, int]:
    value = run.state.get(key)
    if not isinstance(value, Mapping):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}


@dataclass(frozen=True)
class Recall:
    """Recall on the test ids: `values` is (classes, rounds), NaN where it was not measured."""

    classes: tuple[str, ...]
    rounds: tuple[int, ...]
    values: Floats


def recalls(run: RunData) -> Recall | None:
    party = active_party(run)
    found: dict[str, dict[int, float]] = {}
    for name in class_names(run):
        phases = series(run, party, _RECALL + name)
        if phases:
            found[name] = {at: value for points in phases.values() for at, value in points}
    if not found:
        return None
    rounds = tuple(sorted({at for points in found.values() for at in points}))
    values = [[points.get(at, np.nan) for at in rounds] for points in found.values()]
    return Recall(tuple(found), rounds, np.array(values))


def _by_party(run: RunData, prefix: str, shape: Sequence[int | None]) -> dict[str, Floats]:
    """`{party: array}` of the state's `prefix/party`; None in `shape` lets any extent pass."""
    found = {}
    for key, value in run.state.items():
        name, _, party = key.partition("/")
        array = as_array(value) if name == prefix and party else None
        if (
            array is not None
            and array.ndim == len(shape)
            and array.size
            and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
        ):
            found[party] = array
    return in_party_order(run, found)


def gates(run: RunData) -> dict[str, Floats]:
    """`{party: (C,)}`: the mean gate weight of the party on test rows of each true class."""
    return _by_party(run, "gate", (len(class_names(run)),))


@dataclass(frozen=True)
class Prior:
    """A party's class priors `(C,)`, those that are known."""

    estimated: Floats | None = None
    mixed: Floats | None = None
    true: Floats | None = None

    @property
    def off(self) -> float | None:
        """The largest absolute error of the estimate, where the truth is known."""
        if self.estimated is None or self.true is None:
            return None
        return float(np.abs(self.estimated - self.true).max())


def priors(run: RunData) -> dict[str, Prior]:
    found: dict[str, dict[str, Floats]] = {}
    for name, array in _by_party(run, "prior", (len(class_names(run)),)).items():
        party, _, kind = name.rpartition("/")
        if party and kind in ("estimated", "mixed", "true") and np.isfinite(array).all():
            found.setdefault(party, {})[kind] = array
    return in_party_order(run, {party: Prior(**kinds) for party, kinds in found.items()})


def selections(run: RunData, key: str = "selected") -> dict[str, NDArray[np.int64]]:
    """`{party: (C, 2)}` [kept, rows] of its unaligned rows, by predicted (`selected`) or true
    class (`selected_true`)."""
    found = _by_party(run, key, (len(class_names(run)), 2))
    return {party: array.astype(np.int64) for party, array in found.items()}


def selection_courses(run: RunData, key: str = "selected") -> dict[str, NDArray[np.int64]]:
    """`{party: (rounds, C, 2)}`: `selections` of every round from the first on."""
    found = _by_party(run, f"{key}_rounds", (None, len(class_names(run)), 2))
    return {party: array.astype(np.int64) for party, array in found.items()}


@dataclass(frozen=True)
class Plane:
    """Test rows `(n, 2)` with their classes `(n,)`, prototypes `(C, 2)`; total: rows before
    thinning."""

    rows: Floats
    labels: NDArray[np.int64]
    prototypes: Floats
    total: int


def planes(run: RunData) -> dict[str, Plane]:
    """Per party a plane of at most `SHOWN` rows, taken at even steps."""
    found: dict[str, Plane] = {}
    count = len(class_names(run))
    for name in (key for key in run.state if key.startswith("plane/") and key.endswith("/rows")):
        party = name.removeprefix("plane/").removesuffix("/rows")
        rows, labels, marks = (
            as_array(run.state.get(f"plane/{party}/{part}"))
            for part in ("rows", "labels", "prototypes")
        )
        if rows is None or rows.ndim != 2 or rows.shape[1] != 2 or not np.isfinite(rows).all():
            continue
        if labels is None or labels.shape != rows.shape[:1] or not len(labels):
            continue
        if marks is None or marks.shape != (count, 2):
            marks = np.full((count, 2), np.nan)
        kept = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))
        found[party] = Plane(rows[kept], labels[kept].astype(np.int64), marks, len(rows))
    return in_party_order(run, found)


def leakage(run: RunData) -> dict[str, dict[str, float]]:
    """`{party: {measure: value}}` of `leak/party`, and the classes `withheld` from it."""
    found: dict[str, dict[str, float]] = {}
    for key, value in run.state.items():
        name, _, party = key.partition("/")
        if name == "leak" and isinstance(value, Mapping):
            numbers = {str(k): as_array(v) for k, v in value.items()}
            found.setdefault(party, {}).update(
                {k: float(v) for k, v in numbers.items() if v is not None and v.ndim == 0}
            )
        elif name == "withheld" and isinstance(value, int) and not isinstance(value, bool):
            found.setdefault(party, {})["withheld"] = float(value)
    finite = {
        party: {k: v for k, v in numbers.items() if np.isfinite(v)}
        for party, numbers in found.items()
    }
    return in_party_order(run, finite)


def alone(run: RunData) -> dict[str, str]:
    """`{party: metric}`: by which metric a party's work alone is known, balanced where it is."""
    found = {}
    for party in run.parties:
        for metric in ("local_balanced_accuracy", "local_accuracy"):
            if headline(run, party, metric=metric).last is not None:
                found[party] = metric
                break
    return found
