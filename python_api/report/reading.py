"""Reads a run folder as it lies on disk, whatever state the run left it in."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from python_api.errors import InputError

__all__ = ["RunData", "read_run"]


@dataclass(frozen=True)
class RunData:
    """What one run folder says.

    Attributes:
        path: the folder.
        name: a short name, unique among the runs of one report.
        config: the resolved configuration; ``config_text`` is the file as written.
        metrics, traffic: the rows of ``metrics.jsonl`` and ``traffic.jsonl`` in file order.
        columns: of a vertical run, how many numbers each party's encoder reads.
        state: the server's state in the last whole checkpoint, by name; ``{}`` without one.
        state_round: the round of that checkpoint, or ``None``.
        problems: one line for each thing that could not be read; the report prints them.
    """

    path: Path
    name: str
    config: Mapping[str, object]
    config_text: str
    metrics: tuple[Mapping[str, object], ...] = ()
    traffic: tuple[Mapping[str, object], ...] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    status: Mapping[str, object] = field(default_factory=dict)
    state: Mapping[str, object] = field(default_factory=dict)
    state_round: int | None = None
    problems: tuple[str, ...] = ()
    columns: Mapping[str, int] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        return str(self.config.get("algorithm", "unknown"))

    @property
    def rounds(self) -> int | None:
        rounds = self.config.get("rounds")
        return rounds if isinstance(rounds, int) else None

    @property
    def table(self) -> Mapping[str, object]:
        """The algorithm's own table of the configuration."""
        table = self.config.get(self.algorithm)
        return table if isinstance(table, Mapping) else {}

    @property
    def configured_parties(self) -> tuple[Mapping[str, object], ...]:
        parties = self.config.get("party")
        if not isinstance(parties, list):
            return ()
        return tuple(party for party in parties if isinstance(party, Mapping))

    @property
    def vertical(self) -> bool:
        """Whether the parties hold tables of one another's people: columns, not tasks."""
        return any("table" in party for party in self.configured_parties)

    @property
    def headline_metric(self) -> str:
        """What a reader looks at first; in vertical runs no large class outvotes a small one."""
        return "balanced_accuracy" if self.vertical else "accuracy"

    @property
    def parties(self) -> tuple[str, ...]:
        """Names in the order of the configuration, then those that only the metrics know."""
        names = [str(party.get("name", "")) for party in self.configured_parties]
        names += [str(row["party"]) for row in self.metrics if "party" in row]
        return tuple(dict.fromkeys(names))


def read_run(folder: str | Path, *, name: str | None = None) -> RunData:
    """Reads a run folder. Only a missing or broken ``config.toml`` is an error.

    Every other file may be missing, cut short or broken, as an interrupted run leaves it: what is
    readable is returned and the rest is named in ``problems``.

    Raises:
        InputError: `folder` does not exist, or its ``config.toml`` is missing or not TOML.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run folder")
    config_path = folder / "config.toml"
    if not config_path.is_file():
        raise InputError(f"{folder}: is no run folder, it holds no config.toml")
    try:
        config_text = config_path.read_text(encoding="utf-8")
        config = tomllib.loads(config_text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{config_path}: not valid TOML: {error}") from error

    problems: list[str] = []
    metrics = _read_rows(folder / "metrics.jsonl", problems)
    traffic = _read_rows(folder / "traffic.jsonl", problems)
    environment = _read_object(folder / "environment.json", problems)
    status = _read_object(folder / "status.json", problems)
    state, state_round = _read_state(folder, problems)
    return RunData(
        path=folder,
        name=name or folder.resolve().name,
        config=config,
        config_text=config_text,
        metrics=metrics,
        traffic=traffic,
        environment=environment,
        status=status,
        state=state,
        state_round=state_round,
        problems=tuple(problems),
        columns=_read_columns(folder),
    )


def _read_rows(path: Path, problems: list[str]) -> tuple[Mapping[str, object], ...]:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return ()
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            where = "the last line" if number == len(lines) else f"line {number}"
            problems.append(f"{path.name}: {where} is not a JSON object and was left out")
    return tuple(rows)


def _read_object(path: Path, problems: list[str]) -> Mapping[str, object]:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object and was left out")
        return {}
    return value


def _read_columns(folder: Path) -> dict[str, int]:
    """From `models/<party>/native/party.json`; a party without one is left out."""
    found = {}
    for path in sorted(folder.glob("models/*/native/party.json")):
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))["columns"]["parts"]
            found[path.parts[-3]] = sum(
                len(part["outputs"])
                if "outputs" in part
                else sum(part[key] is not None for key in ("value", "missing"))
                for part in parts
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _read_state(folder: Path, problems: list[str]) -> tuple[Mapping[str, object], int | None]:
    """The server's state in the newest checkpoint that is whole; torn ones are passed over."""
    from python_api.federation.checkpoint import (
        latest_round,
        load_round,
    )  # imports torch

    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return {}, None
    found = latest_round(checkpoints)
    if found is None:
        if any(checkpoints.glob("round-*")):
            problems.append("checkpoints/: no round in it is whole")
        return {}, None
    try:
        state = load_round(found.path).get("server", {})
    except (OSError, ValueError) as error:
        problems.append(f"checkpoints/{found.path.name}: {error}")
        return {}, None
    return state, found.round
