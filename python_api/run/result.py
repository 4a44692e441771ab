"""A run that is over: its numbers, and its parties' models."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
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
    def own(self) -> Any:
        """The party's part of the run's configuration."""
        config = Run(self._run).config
        return next(party for party in config.parties if party.name == self.name)

    @cached_property
    def vertical(self) -> bool:
        """Whether the party holds columns of rows that others hold too, not a task of its own."""
        return Run(self._run).config.setting == "vertical"

    @cached_property
    def model(self) -> Any:
        if self.vertical:
            from python_api.algorithms.vertical.load import load_vertical_party

            return load_vertical_party(self._run, self.name)
        from python_api.algorithms.parties import load_party

        return load_party(self._run, self.name)

    def predict(
        self,
        rows: Sequence[Row] | Path | str,
        others: Mapping[str, Sequence[Row] | Path | str] | None = None,
    ) -> list[Row]:
        """The rows with `prediction` and `p_<class>`, or `prediction` and `answer`, added.

        rows: dicts that hold what training read (the label may be missing), or a file of them.
        others: of a vertical run, the other parties' rows by name, joined by id. A party that is
            not there, or lacks an id, counts as absent for it; `present` and `gate_<party>` say so.

        Errors: `InputError` for a row without an id or a column, an id that stands twice, a name
        that is no other party, or others where parties share no rows.
        """
        return self.model.predict(read(rows), *self._others(others))

    def evaluate(
        self,
        rows: Sequence[Row] | Path | str,
        others: Mapping[str, Sequence[Row] | Path | str] | None = None,
    ) -> dict[str, float]:
        """Metrics by name (`accuracy`, `loss`, ...) on rows that hold the label or the answer.

        others: as `predict` takes them; the label may stand in the active party's rows.

        Errors: `InputError` for a row without one, and those of `predict`.
        """
        return self.model.evaluate_rows(read(rows), *self._others(others))

    def _others(
        self, others: Mapping[str, Sequence[Row] | Path | str] | None
    ) -> tuple[dict[str, list[Row]], ...]:
        if self.vertical:
            return ({name: read(rows) for name, rows in (others or {}).items()},)
        if others:
            raise InputError("others: the parties of this run share no rows; expected none")
        return ()


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
