"""From what a user wrote to a `RunConfig`: read, check the keys, merge by precedence, resolve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from python_api.config.defaults import known_algorithms
from python_api.config.keys import CHOICE_KEYS, TRAIN, nearest, table_of
from python_api.config.model import resolve_model
from python_api.config.overrides import Overrides
from python_api.config.presets import preset
from python_api.config.read import read_source
from python_api.config.reader import Layers, Reader
from python_api.config.schema import (
    SLOTS,
    EvalConfig,
    H2TuneConfig,
    PartyConfig,
    RunConfig,
    TrainConfig,
)
from python_api.config.task import resolve_task
from python_api.errors import InputError

__all__ = ["load_config"]

NAME = re.compile(r"[A-Za-z0-9_-]+")
RESERVED = ("server", "all")
PLACE_OF = {"--set train": "train", "--set defaults": "defaults"}


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    *,
    device: str | None = None,
) -> RunConfig:
    """The resolved config of an algorithm's name (its defaults), a TOML file, or a dict like one.

    Weakest first: what is built in, the algorithm's presets, [train], [defaults], [[party]],
    `overrides` (`{"party.shop.rank": 8, "party.*.lr": 1e-3, "rounds": 3}`); `device` beats all.
    Relative paths count from the file's folder (dict: from the working folder).

    Errors: `InputError`, one line that names the file, the key and what was expected.

    >>> config = load_config("h2tune", {"party.*.rank": 4, "rounds": 2})
    >>> [party.rank for party in config.parties], config.rounds
    ([4, 4, 4], 2)
    """
    values, base, name = read_source(source)
    return _Resolver(values, base, name, Overrides.parse(overrides or {})).run(device)


class _Resolver(Reader):
    """One call of `load_config`."""

    def __init__(self, values: dict[str, Any], base: Path, source: str, sets: Overrides) -> None:
        super().__init__(base, source)
        self.sets = sets
        sets.apply_tables(values, source)
        self.values = values

    def run(self, device: str | None) -> RunConfig:
        values = self.values
        self.keys(values, "top", "")
        algorithm = self._algorithm(values)
        h2tune = self.table("h2tune")
        self.keys(h2tune, "h2tune", "h2tune")
        if "basis" in h2tune and not isinstance(h2tune["basis"], str):
            self.build(H2TuneConfig, h2tune, "h2tune")
        self.preset = preset(algorithm, h2tune)
        train = self.table("train")
        self.keys(train, "train", "train")
        evaluation = self.table("eval")
        self.keys(evaluation, "eval", "eval")
        run = {
            "algorithm": algorithm,
            "train": self.train([("train", train)]),
            "eval": self.build(EvalConfig, evaluation, "eval"),
            "h2tune": self.build(H2TuneConfig, self.preset.h2tune | h2tune, "h2tune"),
        }
        for key in ("seed", "rounds", "device"):
            if key in values:
                run[key] = values[key]
            elif key in self.preset.top:
                run[key] = self.preset.top[key]
        if device is not None:
            run["device"] = device
        self.models = self.table("models")
        for name, model in self.models.items():
            self.keys(table_of(model, f"models.{name}", self.source), "model", f"models.{name}")
        parties = tuple(self._parties(device))
        if "device" in run:
            self._device(run["device"], "device")
        return self.build(RunConfig, run | {"parties": parties}, "")

    # ---- parties ----------------------------------------------------------------------------

    def _parties(self, device: str | None) -> list[PartyConfig]:
        defaults = self.table("defaults")
        self.keys(defaults, "defaults", "defaults")
        given = self.values.get("party", [])
        if not isinstance(given, list) or not given:
            raise InputError(f"{self.source}: party: expected at least one [[party]] table")
        tables: list[dict[str, Any]] = []
        names: list[str] = []
        for number, value in enumerate(given, 1):
            party = table_of(value, f"party {number}", self.source)
            names.append(self._name(party, number, names))
            tables.append(party)
        self.sets.check_parties(names, self.source)
        return [
            self._party(name, table, defaults, device)
            for name, table in zip(names, tables, strict=True)
        ]

    def _name(self, party: Mapping[str, Any], number: int, taken: list[str]) -> str:
        name = party.get("name")
        if name is None:
            self.keys(party, "party", f"party {number}")
            raise InputError(f"{self.source}: party {number}: no name; expected name = ...")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(
                f"{self.source}: party {number}: name {name!r}; expected letters, digits, _ and -"
            )
        if name in RESERVED:
            raise InputError(
                f"{self.source}: party {number}: name {name!r} is reserved; expected another"
            )
        if name in taken:
            raise InputError(
                f"{self.source}: party {number}: name {name!r} is taken by party "
                f"{taken.index(name) + 1}; expected a name of its own"
            )
        return name

    def _party(
        self, name: str, own: dict[str, Any], defaults: dict[str, Any], device: str | None
    ) -> PartyConfig:
        where = f"party.{name}"
        self.keys(own, "party", where)
        levels = [("train", self.table("train")), ("defaults", defaults), (where, own)]
        levels += self.sets.levels(name)
        for place, level in levels[3:]:
            self.keys(level, PLACE_OF.get(place, "party"), place)
        layers = [(place, level) for place, level in levels if place != "train"]
        values: dict[str, Any] = {"name": name} | self.preset.party
        for place, level in layers:
            values |= {key: level[key] for key in CHOICE_KEYS if key in level}
            if "alpha" in level and self.preset.refuses_alpha:
                raise InputError(
                    f'{self.source}: {place}.alpha: basis = "svd" and "rotated" scale by 1 '
                    "whatever the rank; expected no alpha"
                )
        if isinstance(values.get("alpha"), int) and not isinstance(values["alpha"], bool):
            values["alpha"] = float(values["alpha"])
        if self.preset.refuses_alpha:
            rank = values.get("rank")
            values["alpha"] = float(rank) if isinstance(rank, int) else 1.0
        values["modules"] = self._modules(values.get("modules", "all"), where)
        self._slot_names(values.get("slots"), f"{where}.slots")
        if device is not None:
            values["device"] = None
        elif values.get("device") is not None:
            self._device(values["device"], f"{where}.device")
        values["task"] = task = resolve_task(self, layers, where)
        values["model"] = resolve_model(self, layers, where, models=self.models)
        values["train"] = self.train(levels, generation=task.kind == "generation")
        return self.build(PartyConfig, values, where)

    def _modules(self, value: Any, where: str) -> Any:
        if value == "all":
            return value
        if not isinstance(value, list | tuple) or not value:
            raise InputError(
                f'{self.source}: {where}.modules: {value!r}; expected "all" or a list of slots'
            )
        for slot in value:
            if slot not in SLOTS:
                near = nearest(str(slot), SLOTS)
                hint = f"nearest known: {near}" if near else f"expected some of {' '.join(SLOTS)}"
                raise InputError(f"{self.source}: {where}.modules: no slot {slot!r}; {hint}")
        return tuple(value)

    def _slot_names(self, value: Any, where: str) -> None:
        if value is None:
            return
        for slot in table_of(value, where, self.source):
            if slot not in SLOTS:
                raise InputError(
                    f"{self.source}: {where}: no slot {slot!r}; expected some of {' '.join(SLOTS)}"
                )

    def _device(self, value: Any, where: str) -> None:
        if value not in ("auto", "cpu", "cuda") and not (
            isinstance(value, str) and re.fullmatch(r"cuda:\d+", value)
        ):
            raise InputError(
                f'{self.source}: {where}: {value!r}; expected "auto", "cpu", "cuda" or "cuda:N"'
            )

    # ---- train ------------------------------------------------------------------------------

    def train(self, levels: Layers, *, generation: bool = False) -> TrainConfig:
        """[train] of one party (or of the run): every level over the one before it."""
        values: dict[str, Any] = {"max_length": 768} if generation else {}
        values |= self.preset.train
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

    # ---- helpers ----------------------------------------------------------------------------

    def _algorithm(self, values: Mapping[str, Any]) -> str:
        known = known_algorithms()
        name = values.get("algorithm")
        if name is None:
            raise InputError(
                f"{self.source}: no algorithm; expected algorithm = one of {', '.join(known)} as "
                "the first line"
            )
        if name not in known:
            near = nearest(str(name), known)
            hint = f"nearest known: {near}" if near else f"expected one of {', '.join(known)}"
            raise InputError(f"{self.source}: algorithm: {name!r} is not known; {hint}")
        return name

    def table(self, key: str) -> dict[str, Any]:
        return table_of(self.values.get(key, {}), key, self.source)
