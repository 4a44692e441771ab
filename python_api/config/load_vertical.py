"""A vertical config, resolved: a table per party, one of them with the labels."""

from __future__ import annotations

from typing import Any

from python_api.config.encoder import resolve_encoder
from python_api.config.keys import TABLE_KEYS
from python_api.config.presets import vertical_preset
from python_api.config.resolver import Resolver, lists
from python_api.config.schema import (
    DataConfig,
    H2TuneConfig,
    ProtoEvflConfig,
    VerticalPartyConfig,
)
from python_api.errors import InputError

__all__ = ["VerticalResolver"]

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")  # those of data/loaders.py


class VerticalResolver(Resolver):
    """Parties with a table."""

    setting = "vertical"
    # "common" and the like are counts that stand beside those of the parties
    reserved = ("server", "all", "common", "aligned", "test", "validation")

    def tables(self, algorithm: str) -> dict[str, Any]:
        given = self.checked("proto_evfl")
        if not isinstance(given.get("preset", ""), str):
            self.build(ProtoEvflConfig, given, "proto_evfl")
        self.preset = vertical_preset(given)
        made: dict[str, Any] = {
            "proto_evfl": self.build(ProtoEvflConfig, self.preset.proto_evfl | given, "proto_evfl"),
            "data": self._data(),
        }
        if "h2tune" in self.values:  # of the other setting: checked, and read by nobody
            made["h2tune"] = self.build(H2TuneConfig, self.checked("h2tune"), "h2tune")
        return made

    def _data(self) -> DataConfig:
        values = self.checked("data")
        for key in ("labels", "unseen"):
            if isinstance(values.get(key), list):
                values[key] = tuple(_text(value) for value in values[key])
        data = self.build(DataConfig, values, "data")
        for key in ("labels", "unseen"):
            names = getattr(data, key)
            double = [name for name in names if names.count(name) > 1]
            if double:
                raise InputError(
                    f"{self.source}: data.{key}: {double[0]!r} stands twice; expected distinct "
                    "classes"
                )
        if len(data.labels) == 1:
            raise InputError(
                f"{self.source}: data.labels: {data.labels[0]!r} alone; expected two classes or "
                "more, or none to take those found"
            )
        for name in data.unseen if data.labels else ():
            if name not in data.labels:
                raise InputError(
                    f"{self.source}: data.unseen: {name!r}; expected one of data.labels: "
                    f"{', '.join(data.labels)}"
                )
        return data

    def parties(self, run: dict[str, Any], device: str | None) -> tuple[VerticalPartyConfig, ...]:
        self.checked("defaults")
        made = [self._party(name, own, device) for name, own in self.named().items()]
        active = self._active(made)
        if len(made) < 2 and run["algorithm"] != "vfl_local":
            raise InputError(
                f"{self.source}: party: {active.name} alone; expected two parties or more for "
                f"{run['algorithm']}"
            )
        first = made[0]
        for party in made[1:]:
            if party.model.out != first.model.out:
                raise InputError(
                    f"{self.source}: party.{party.name}.model.out: {party.model.out}, where "
                    f"party.{first.name} has {first.model.out}; expected one width for all"
                )
        run["data"], label = self._label(run["data"], active)
        return tuple(
            party.model_copy(update={"label": label}) if party.active else party for party in made
        )

    def _active(self, parties: list[VerticalPartyConfig]) -> VerticalPartyConfig:
        found = [party for party in parties if party.active]
        if len(found) != 1:
            got = f"{' and '.join(p.name for p in found)} are active" if found else "none is active"
            raise InputError(
                f"{self.source}: party: {got}; expected active = true in exactly one [[party]], "
                "the one that has the labels"
            )
        return found[0]

    def _label(self, data: DataConfig, active: VerticalPartyConfig) -> tuple[DataConfig, str]:
        """The active party's label column stands in [data], or in its own table."""
        if data.label is None and active.label is None:
            raise InputError(
                f"{self.source}: data.label: is missing; expected the label column of "
                f"{active.name}, the active party"
            )
        if data.label is not None and active.label not in (None, data.label):
            raise InputError(
                f"{self.source}: party.{active.name}.label: {active.label!r}, where data.label is "
                f"{data.label!r}; expected one of the two"
            )
        label = data.label or active.label or ""
        return data.model_copy(update={"label": label}), label

    def _party(self, name: str, own: dict[str, Any], device: str | None) -> VerticalPartyConfig:
        where = f"party.{name}"
        levels = self.levels(name, own)
        layers = [(place, level) for place, level in levels if place != "train"]
        values: dict[str, Any] = {"name": name}
        for _, level in layers:
            keys = ("active", "table", *TABLE_KEYS)
            values |= {key: level[key] for key in keys if key in level}
        for key, wanted in (("table", "a file or built-in data"), ("id", "the id column")):
            if key not in values:
                raise InputError(f"{self.source}: {where}: no {key}; expected {wanted}")
        lists(values, ("features", "categorical"))
        self.own_device(values, device, where)
        values["model"] = resolve_encoder(self, layers, where)
        values["train"] = self.train(levels)
        party = self.build(VerticalPartyConfig, values, where)
        self._columns(party, where)
        return party.model_copy(update={"table": self._table(party.table, where)})

    def _table(self, table: str, where: str) -> str:
        if table.startswith("builtin:"):
            from python_api.data.vertical.builtin import parse_table

            try:
                parse_table(table)
            except InputError as error:
                raise InputError(f"{self.source}: {where}.table: {error}") from error
            return table
        if not table.endswith(SUFFIXES):
            raise InputError(
                f"{self.source}: {where}.table: {table!r}; expected a file "
                f"({' '.join(SUFFIXES)}), or built-in data such as "
                '"builtin:digits?views=2&view=1"'
            )
        return self.path(table)

    def _columns(self, party: VerticalPartyConfig, where: str) -> None:
        """Columns have one part each: id, label, or feature."""
        for key in ("features", "categorical"):
            names = getattr(party, key)
            for taken, what in ((party.id, "id"), (party.label, "label")):
                if taken in names:
                    raise InputError(
                        f"{self.source}: {where}.{key}: {taken!r} is the {what} column; expected "
                        "other columns"
                    )
            double = [name for name in names if names.count(name) > 1]
            if double:
                raise InputError(
                    f"{self.source}: {where}.{key}: {double[0]!r} stands twice; expected distinct "
                    "columns"
                )
        if party.label == party.id:
            raise InputError(f"{self.source}: {where}.label: is the id column; expected another")
        for name in party.categorical if party.features else ():
            if name not in party.features:
                raise InputError(
                    f"{self.source}: {where}.categorical: {name!r} is not among the features; "
                    f"expected one of {', '.join(party.features)}"
                )


def _text(value: Any) -> Any:
    """A class may be written as a whole number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
