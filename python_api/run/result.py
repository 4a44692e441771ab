"""A run that is over: its numbers, and its parties' models."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_api.errors import InputError
from python_api.run.folder import is_run_folder

if TYPE_CHECKING:
    from python_api.config import RunConfig

__all__ = ["Run", "TrainedParty", "load"]

Row = dict[str, Any]


def load(folder: Path | str) -> Run:
    """The run in `folder`, finished, interrupted or failed.

    Errors: `InputError` if there is no run in it.
    """
    path = Path(folder)
    if not is_run_folder(path):
        raise InputError(f"{path}: expected a run folder (config.toml and status.json in it)")
    return Run(path)


class Run:
    """path: the run folder, as it was given. What it holds is read when it is asked for."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def metrics(self) -> list[Row]:
        """The rows of `metrics.jsonl`, in file order."""
        return read_lines(self.path / "metrics.jsonl")

    @property
    def traffic(self) -> list[Row]:
        """The rows of `traffic.jsonl`, in file order."""
        return read_lines(self.path / "traffic.jsonl")

    @property
    def status(self) -> Row:
        """`status` (running, finished, interrupted, failed), `round` (the last one kept), ..."""
        return json.loads((self.path / "status.json").read_text(encoding="utf-8"))

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @cached_property
    def config(self) -> RunConfig:
        from python_api.config import load_config

        return load_config(self.path / "config.toml")

    @property
    def parties(self) -> tuple[str, ...]:
        """The parties whose models were kept."""
        models = self.path / "models"
        return tuple(sorted(p.name for p in models.iterdir())) if models.is_dir() else ()

    def party(self, name: str) -> TrainedParty:
        """Errors: `InputError` if no model of that name was kept."""
        if name not in self.parties:
            known = ", ".join(self.parties) or "none"
            raise InputError(
                f"party: {name!r} has no model in {self.path}; expected one of {known}"
            )
        return TrainedParty(self.path, name)

    def headline(self) -> dict[str, float]:
        """Per party the test accuracy of the model that it keeps: its last such row."""
        return {
            row["party"]: row["value"]
            for row in self.metrics
            if row["metric"] == "accuracy" and row["split"] == "test"
        }

    def __repr__(self) -> str:
        shown = "".join(f", {party}={value:.3f}" for party, value in self.headline().items())
        return f"Run({str(self.path)!r}, {self.status['status']}{shown})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(party)}</td><td>{value:.3f}</td></tr>"
            for party, value in self.headline().items()
        )
        status, path = html.escape(self.status["status"]), html.escape(str(self.path))
        head = "<tr><th>party</th><th>test accuracy</th></tr>"
        return f"<p>{path}: {status}</p><table>{head}{rows}</table>"


class TrainedParty:
    """A party's model as the last kept round left it; loaded when it is first used."""

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / "models" / name
        self.name = name
        self._run = run

    @cached_property
    def model(self) -> Any:
        from python_api.algorithms.parties import load_party

        return load_party(self._run, self.name)

    def predict(self, rows: Sequence[Row] | Path | str) -> list[Row]:
        """The rows with `prediction` and `p_<class>`, or `prediction` and `answer`, added.

        rows: dicts that hold what training read (the label may be missing), or a file of them.
        """
        return self.model.predict(read(rows))

    def evaluate(self, rows: Sequence[Row] | Path | str) -> dict[str, float]:
        """Metrics by name (`accuracy`, `loss`, ...) on rows that hold the label or the answer.

        Errors: `InputError` for a row without one.
        """
        return self.model.evaluate_rows(read(rows))


def read(rows: Sequence[Row] | Path | str) -> list[Row]:
    if isinstance(rows, str | Path):
        from python_api.data.loaders import read_rows

        return read_rows(Path(rows))
    # rows of a file know their lines: a copy would not
    return rows if isinstance(rows, list) else list(rows)


def read_lines(path: Path) -> list[Row]:
    """Rows of a `.jsonl` file; a last line that a killed run left unfinished is passed over."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
