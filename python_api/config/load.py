"""From what a user wrote to a `RunConfig`: read, check the keys, merge by precedence, resolve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from python_api.config.defaults import known_algorithms
from python_api.config.keys import CHOICE_KEYS, TRAIN, check_keys, nearest, table_of
from python_api.config.messages import one_line
from python_api.config.overrides import Overrides
from python_api.config.presets import preset
from python_api.config.read import read_source
from python_api.config.schema import (
    SLOTS,
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PartyConfig,
    PretrainConfig,
    RunConfig,
    Table,
    TaskConfig,
    TrainConfig,
)
from python_api.errors import InputError

__all__ = ["load_config"]

NAME = re.compile(r"[A-Za-z0-9_-]+")
RESERVED = ("server", "all")
PLACE_OF = {"--set train": "train", "--set defaults": "defaults"}
T = TypeVar("T", bound=Table)


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


class _Resolver:
    """One call of `load_config`."""

    def __init__(self, values: dict[str, Any], base: Path, source: str, sets: Overrides) -> None:
        self.base, self.source, self.sets = base, source, sets
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
        tables, names = [], []
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
        values["task"] = task = self._task(layers, where)
        values["model"] = self._model(layers, where)
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

    def train(
        self, levels: list[tuple[str, Mapping[str, Any]]], *, generation: bool = False
    ) -> TrainConfig:
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

    # ---- model and task ---------------------------------------------------------------------

    def _model(self, layers: list[tuple[str, Mapping[str, Any]]], where: str) -> ModelConfig:
        """The last level that names a model; `--set` merges key by key into it."""
        value: Any = {}
        for place, level in layers:
            if "model" not in level:
                continue
            new = level["model"]
            merged = place.startswith("--set") and isinstance(new, Mapping)
            if merged and isinstance(value, str):
                raise InputError(
                    f"{self.source}: {place}.model: the model is [models.{value}]; expected "
                    f"--set models.{value}.KEY=..."
                )
            value = {**value, **new} if merged else new
        shared = None
        if isinstance(value, str):
            shared = value
            if value not in self.models:
                known = ", ".join(self.models) or "none"
                near = nearest(value, self.models)
                hint = f"nearest known: {near}" if near else f"[models] has {known}"
                raise InputError(f"{self.source}: {where}.model: no model {value!r}; {hint}")
            place = f"models.{value}"
            value = self.models[value]
        else:
            place = f"{where}.model"
        values = table_of(value, place, self.source)
        self.keys(values, "model", place)
        if values.get("path") is not None:
            for key in ("kind", "hidden_size", "layers", "heads", "pretrain"):
                if key in values:
                    raise InputError(f"{self.source}: {place}: path and {key}; expected path alone")
            values["kind"] = None
            values["path"] = self._model_path(values["path"], place)
        values["pretrain"] = self._pretrain(values.get("pretrain"), shared, place)
        model = self.build(ModelConfig, values | {"shared": shared}, place)
        if model.path is None and model.hidden_size % model.heads:
            raise InputError(
                f"{self.source}: {place}.heads: {model.heads} does not divide hidden_size = "
                f"{model.hidden_size}; expected a divisor"
            )
        return model

    def _model_path(self, value: Any, place: str) -> str:
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.source}: {place}.path: {value!r}; expected a folder or a name")
        here = self.path(value)
        # `owner/name` is a Hub name unless a folder of that name stands beside the config
        local = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(here).exists()
        return here if local else value

    def _pretrain(self, value: Any, shared: str | None, place: str) -> PretrainConfig:
        if value is None:
            value = {}
        if isinstance(value, str):
            value = {"text": value}
        where = f"{place}.pretrain"
        values = table_of(value, where, self.source)
        self.keys(values, "pretrain", where)
        text = values.get("text")
        if text == "none":
            values["steps"] = 0
        elif text == "own" and shared is not None:
            raise InputError(
                f'{self.source}: {where}.text: "own" is no text that all parties hold; expected '
                '"builtin", "none" or a file'
            )
        elif isinstance(text, str) and text not in ("own", "builtin"):
            values["text"] = self.path(text)
        return self.build(PretrainConfig, values, where)

    def _task(self, layers: list[tuple[str, Mapping[str, Any]]], where: str) -> TaskConfig:
        """Key by key over all levels: [defaults] may hold the columns, the party the file."""
        values: dict[str, Any] = {}
        for place, level in layers:
            if "task" in level:
                new = table_of(level["task"], f"{place}.task", self.source)
                self.keys(new, "task", f"{place}.task")
                # whose data it is, is one choice
                if "data" in new:
                    values.pop("train", None)
                if "train" in new:
                    values.pop("data", None)
                values |= new
        where = f"{where}.task"
        if isinstance(values.get("text"), str):
            values["text"] = (values["text"],)
        for key in ("text", "columns"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        for key in ("test", "validation"):
            if isinstance(values.get(key), int) and not isinstance(values[key], bool):
                values[key] = float(values[key])
        task = self.build(TaskConfig, values, where)
        if task.data is not None and "test" in values:
            raise InputError(
                f"{self.source}: {where}.test: {task.data} brings its own; expected "
                f'data = "{task.data.partition("?")[0]}?test=N" for another size'
            )
        self._task_complete(task, where)
        if task.data is not None:  # the columns of a file to predict on
            task = task.model_copy(update={"text": ("text",), "label": "label"})
        files = {
            key: self.path(value)
            for key in ("train", "test", "validation")
            if isinstance(value := getattr(task, key), str)
        }
        return task.model_copy(update=files)

    def _task_complete(self, task: TaskConfig, where: str) -> None:
        def fail(text: str) -> None:
            raise InputError(f"{self.source}: {where}{text}")

        if task.data is not None:
            from python_api.data.builtin import parse_name

            try:
                parse_name(task.data)
            except InputError as error:
                fail(f".data: {error}")
            if task.kind != "classification":
                fail(f".kind: {task.data} is classification data, got {task.kind!r}")
            for key in ("train", "columns", "text", "label", "question", "answer"):
                if getattr(task, key):
                    fail(f": data and {key}; expected data alone")
            if isinstance(task.validation, str):
                fail(": data and a validation file; expected data alone")
            return
        if task.train is None:
            fail(
                ": no train; expected a file (.jsonl, .csv, .tsv, .parquet), or data = "
                '"builtin:sentiment"'
            )
        wanted, other = ("text", "label"), ("question", "answer")
        if task.kind == "generation":
            wanted, other = other, wanted
        for key in wanted:
            if not getattr(task, key):
                fail(f': no {key}; expected the name of the {key} column for kind = "{task.kind}"')
        for key in other:
            if getattr(task, key):
                fail(
                    f'.{key}: is not read for kind = "{task.kind}"; expected {" and ".join(wanted)}'
                )

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

    def keys(self, values: Mapping[str, Any], place: str, where: str) -> None:
        check_keys(values, place, where, self.source)

    def path(self, value: str) -> str:
        return str((self.base / Path(value).expanduser()).resolve())

    def build(self, cls: type[T], values: Mapping[str, Any], where: str) -> T:
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError(f"{self.source}: {one_line(cls, error, where)}") from error
