"""What resolving a config takes in either setting: names, devices, [train], the own tables."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from python_api.config.keys import TRAIN, table_of
from python_api.config.overrides import Overrides
from python_api.config.presets import Preset
from python_api.config.reader import Layers, Reader
from python_api.config.schema import EvalConfig, RunConfig, TrainConfig
from python_api.errors import InputError

__all__ = ["Resolver", "lists"]

NAME = re.compile(r"[A-Za-z0-9_-]+")
PLACE_OF = {"--set train": "train", "--set defaults": "defaults"}


class Resolver(Reader, ABC):
    """One call of `load_config`; a subclass per setting.

    values: the file, with `--set` laid over its tables (but not over its parties).
    """

    reserved: tuple[str, ...] = ("server", "all")
    preset: Preset

    def __init__(self, values: dict[str, Any], base: Path, source: str, sets: Overrides) -> None:
        super().__init__(base, source)
        self.sets = sets
        self.values = values

    def run(self, algorithm: str, device: str | None) -> RunConfig:
        self.keys(self.values, "top", "")
        own = self.tables(algorithm)
        train = self.table("train")
        self.keys(train, "train", "train")
        evaluation = self.table("eval")
        self.keys(evaluation, "eval", "eval")
        run = {
            "algorithm": algorithm,
            "train": self.train([("train", train)]),
            "eval": self.build(EvalConfig, evaluation, "eval"),
            **own,
        }
        for key in ("seed", "rounds", "device"):
            if key in self.values:
                run[key] = self.values[key]
            elif key in self.preset.top:
                run[key] = self.preset.top[key]
        if device is not None:
            run["device"] = device
        run["parties"] = self.parties(run, device)
        if "device" in run:
            self.device(run["device"], "device")
        return self.build(RunConfig, run, "")

    @abstractmethod
    def tables(self, algorithm: str) -> dict[str, Any]:
        """Set `self.preset` and build the setting's own tables, by their fields of `RunConfig`."""

    @abstractmethod
    def parties(self, run: dict[str, Any], device: str | None) -> tuple[Any, ...]:
        """Complete parties, in the file's order.

        run: the fields of `RunConfig` so far; what parties say of them is put in.
        """

    # ---- parties ----------------------------------------------------------------------------

    def named(self) -> dict[str, dict[str, Any]]:
        """The [[party]] tables by name; `--set` names none that is not there."""
        given = self.values.get("party", [])
        if not isinstance(given, list) or not given:
            raise InputError(f"{self.source}: party: expected at least one [[party]] table")
        tables: dict[str, dict[str, Any]] = {}
        for number, value in enumerate(given, 1):
            party = table_of(value, f"party {number}", self.source)
            tables[self._name(party, number, list(tables))] = party
        self.sets.check_parties(list(tables), self.source)
        return tables

    def _name(self, party: Mapping[str, Any], number: int, taken: list[str]) -> str:
        name = party.get("name")
        if name is None:
            self.keys(party, "party", f"party {number}")
            raise InputError(f"{self.source}: party {number}: no name; expected name = ...")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(
                f"{self.source}: party {number}: name {name!r}; expected letters, digits, _ and -"
            )
        if name in self.reserved:
            raise InputError(
                f"{self.source}: party {number}: name {name!r} is reserved; expected another"
            )
        if name in taken:
            raise InputError(
                f"{self.source}: party {number}: name {name!r} is taken by party "
                f"{taken.index(name) + 1}; expected a name of its own"
            )
        return name

    def levels(self, name: str, own: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """(place, keys) that a party's keys come from, weakest first, checked."""
        where = f"party.{name}"
        self.keys(own, "party", where)
        found = [("train", self.table("train")), ("defaults", self.table("defaults")), (where, own)]
        found += self.sets.levels(name)
        for place, level in found[3:]:
            self.keys(level, PLACE_OF.get(place, "party"), place)
        return found

    def own_device(self, values: dict[str, Any], device: str | None, where: str) -> None:
        """A party's device: `--device` beats it."""
        if device is not None:
            values["device"] = None
        elif values.get("device") is not None:
            self.device(values["device"], f"{where}.device")

    def device(self, value: Any, where: str) -> None:
        if value not in ("auto", "cpu", "cuda") and not (
            isinstance(value, str) and re.fullmatch(r"cuda:\d+", value)
        ):
            raise InputError(
                f'{self.source}: {where}: {value!r}; expected "auto", "cpu", "cuda" or "cuda:N"'
            )

    # ---- tables -----------------------------------------------------------------------------

    def train(self, levels: Layers, *, below: Mapping[str, Any] | None = None) -> TrainConfig:
        """[train] of one party (or of the run): every level over the one before it.

        below: values under the preset's.
        """
        values: dict[str, Any] = {**(below or {}), **self.preset.train}
        for place, level in levels:
            own = {key: level[key] for key in TRAIN if key in level}
            if "steps" in own and "epochs" in own:
                raise InputError(
                    f"{self.source}: {place}: epochs and steps; expected one of the two"
                )
            if own:
                # Checked level by level, so that the message names the table that holds the key.
                self.build(TrainConfig, own, place)
            if "epochs" in own:
                values.pop("steps", None)
            if "steps" in own:
                values.pop("epochs", None)
            values |= own
        return self.build(TrainConfig, values, levels[-1][0])

    def table(self, key: str) -> dict[str, Any]:
        return table_of(self.values.get(key, {}), key, self.source)

    def checked(self, key: str) -> dict[str, Any]:
        """The table `key`, all of whose keys are known."""
        table = self.table(key)
        self.keys(table, key, key)
        return table


def lists(values: dict[str, Any], keys: Sequence[str]) -> None:
    """TOML's lists as tuples, in place."""
    for key in keys:
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
