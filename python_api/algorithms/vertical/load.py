"""A finished vertical run's model: decisions for rows of one party's table, joined with others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from python_api.algorithms.vertical.fusion import Fusion
from python_api.algorithms.vertical.measure import decision_metrics
from python_api.errors import InputError
from python_api.models.bases import resolve_device
from python_api.models.encoder import build_encoder

__all__ = ["VerticalModel", "load_vertical_party"]

Row = Mapping[str, Any]


def load_vertical_party(folder: str | Path, name: str) -> VerticalModel:
    """The run's model as seen from party `name`: its rows are the ones that are decided.

    Raises:
        InputError: no such run or party, or nothing saved yet.
    """
    from python_api.config import load_config

    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: no config.toml; expected a run folder")
    config = load_config(folder / "config.toml")
    names = [party.name for party in config.parties]
    if name not in names:
        raise InputError(f"{folder}: no party {name!r}; expected one of {' '.join(names)}")
    return VerticalModel(folder, config, name)


class VerticalModel:
    """Encoders of all parties and the active party's fusion, for prediction.

    Every party's encoder lies in the run folder of a run in one process; across organisations each
    would hold its own, and representations would travel.
    """

    def __init__(self, folder: Path, config: Any, name: str) -> None:
        from python_api.config.schema import ProtoEvflConfig
        from python_api.data.vertical import Columns

        self.name, self.config = name, config
        self.parties = {party.name: party for party in config.parties}
        self.active = next(party.name for party in config.parties if party.active)
        about = _read(folder / "models" / self.active / "native" / "party.json")
        if "keys" not in about:
            raise InputError(f"{folder}: {config.algorithm} keeps no model that joins parties")
        self.labels: tuple[str, ...] = tuple(about["labels"])
        self.order: tuple[str, ...] = tuple(about["parties"])
        if name not in self.order:
            raise InputError(
                f"{folder}: party {name} took no part in {config.algorithm}; expected one of "
                f"{' '.join(self.order)}"
            )
        self.device = resolve_device(self.parties[self.active].device or config.device)
        width = self.parties[self.active].model.out
        keys = ProtoEvflConfig(**about["keys"])
        self.fusion = Fusion(self.order, self.active, len(self.labels), width, keys)
        native = folder / "models" / self.active / "native"
        self.fusion.load_state_dict(load_file(native / "fused.safetensors"))
        self.fusion.to(self.device).eval()
        self.columns: dict[str, Any] = {}
        self.encoders: dict[str, torch.nn.Module] = {}
        for other in self.order:
            native = folder / "models" / other / "native"
            self.columns[other] = Columns.from_dict(_read(native / "party.json")["columns"])
            encoder = build_encoder(
                self.parties[other].model, len(self.columns[other].names), seed=0
            )
            encoder.load_state_dict(load_file(native / "encoder.safetensors"))
            self.encoders[other] = encoder.to(self.device).eval()

    def predict(
        self, rows: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of this party with `prediction`, `p_<class>`, `present` (the parties that hold
        the row, with blanks between) and `gate_<party>` (its weight on the predicted class).

        others: rows of further parties by name, joined by id; parties that are not named are
            masked.

        Raises:
            InputError: a row without an id or a column that training read, an id twice in one
                table, or a name that is no other party.
        """
        h, present = self.represent(rows, others or {})
        with torch.no_grad():
            p = self.fusion.scores(h, present).double().softmax(1).cpu()
            gates = self.fusion.gates(h, present).cpu()
        found = []
        for number, row in enumerate(rows):
            best = int(p[number].argmax())
            bits = present[number].tolist()
            found.append(
                {
                    **row,
                    "prediction": self.labels[best],
                    **{f"p_{c}": float(v) for c, v in zip(self.labels, p[number], strict=True)},
                    "present": " ".join(n for n, bit in zip(self.order, bits, strict=True) if bit),
                    **{
                        f"gate_{n}": float(gates[number, m, best]) for m, n in enumerate(self.order)
                    },
                }
            )
        return found

    def evaluate_rows(
        self, rows: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None
    ) -> dict[str, float]:
        """Metrics by name on rows that hold the label: in this party's rows or the active party's.

        Raises:
            InputError: no rows, or one without a label; and all of `predict`.
        """
        others = dict(others or {})
        if not rows:
            raise InputError("no rows; expected at least one to evaluate on")
        told = self._labels(rows, others)
        h, present = self.represent(rows, others)
        with torch.no_grad():
            scores = self.fusion.scores(h, present).cpu()
        unseen = [self.labels.index(label) for label in self.config.data.unseen]
        return decision_metrics(scores, torch.tensor(told), self.labels, unseen)

    @torch.no_grad()
    def represent(
        self, rows: Sequence[Row], others: Mapping[str, Sequence[Row]]
    ) -> tuple[Tensor, Tensor]:
        """(h (n, M, d), present (n, M)) of this party's rows."""
        for other in others:
            if other == self.name or other not in self.parties:
                known = " ".join(n for n in self.order if n != self.name)
                raise InputError(
                    f"{other}: is no other party of this run; expected some of {known}"
                )
        ids = self.ids(self.name, rows)
        width = self.parties[self.active].model.out
        h = torch.zeros(len(rows), len(self.order), width, device=self.device)
        present = torch.zeros(h.shape[:2], dtype=torch.bool, device=self.device)
        for m, party in enumerate(self.order):
            table = rows if party == self.name else others.get(party)
            if table is None or not len(table):
                continue
            place = {id: at for at, id in enumerate(self.ids(party, table))}
            held = [number for number, id in enumerate(ids) if id in place]
            if not held:
                continue
            x = self.columns[party].encode(table)[[place[ids[number]] for number in held]]
            h[held, m] = self.encoders[party](x.to(self.device))
            present[held, m] = True
        return h, present

    def ids(self, party: str, rows: Sequence[Row]) -> list[str]:
        """The rows' ids as texts.

        Raises:
            InputError: a row without one, or one that stands twice.
        """
        column, seen = self.parties[party].id, {}
        for number, row in enumerate(rows):
            id = str(row.get(column, "")).strip()
            where = _where(rows, number)
            if not id:
                raise InputError(f"{where}: party {party}: no id in column {column!r}")
            if id in seen:
                raise InputError(
                    f"{where}: party {party}: id {id!r} stands twice; first {seen[id]}"
                )
            seen[id] = where
        return list(seen)

    def _labels(self, rows: Sequence[Row], others: Mapping[str, Sequence[Row]]) -> list[int]:
        place = {label: c for c, label in enumerate(self.labels)}
        own = self.parties[self.name].label
        column = self.config.data.label
        beside: dict[str, Row] = {}
        if self.active in others:
            table = others[self.active]
            beside = dict(zip(self.ids(self.active, table), table, strict=True))
        found = []
        for number, (id, row) in enumerate(zip(self.ids(self.name, rows), rows, strict=True)):
            names = [own, column] if own else [column]
            label = next((row[n] for n in names if n in row), None)
            if label is None:
                label = beside.get(id, {}).get(column)
            label = None if label is None else str(label).strip()  # as training reads it
            if label not in place:
                got = "no label" if label is None else f"label {label!r}"
                raise InputError(
                    f"{_where(rows, number)}: {got} in column {names[0]!r}; expected one of "
                    f"{', '.join(self.labels)}"
                )
            found.append(place[label])
        return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: no saved model; expected one after a finished round")
    return json.loads(path.read_text(encoding="utf-8"))


def _where(rows: Sequence[Row], number: int) -> str:
    where = getattr(rows, "where", None)
    return where(number) if where is not None else f"row {number + 1}"
