"""A fine-tuning config, resolved: a model and a task per party."""

from __future__ import annotations

from typing import Any

from python_api.config.keys import CHOICE_KEYS, nearest, table_of
from python_api.config.model import resolve_model
from python_api.config.presets import preset
from python_api.config.resolver import Resolver, lists
from python_api.config.schema import (
    SLOTS,
    DataConfig,
    H2TuneConfig,
    PartyConfig,
    ProtoEvflConfig,
)
from python_api.config.task import resolve_task
from python_api.errors import InputError

__all__ = ["TuningResolver"]


class TuningResolver(Resolver):
    """Parties with a model and a task."""

    setting = "tuning"

    def tables(self, algorithm: str) -> dict[str, Any]:
        h2tune = self.checked("h2tune")
        if "basis" in h2tune and not isinstance(h2tune["basis"], str):
            self.build(H2TuneConfig, h2tune, "h2tune")
        self.preset = preset(algorithm, h2tune)
        made: dict[str, Any] = {
            "h2tune": self.build(H2TuneConfig, self.preset.h2tune | h2tune, "h2tune")
        }
        # of the other setting: checked, and read by nobody
        if "proto_evfl" in self.values:
            foreign = self.checked("proto_evfl")
            made["proto_evfl"] = self.build(ProtoEvflConfig, foreign, "proto_evfl")
        if "data" in self.values:
            data = self.checked("data")
            lists(data, ("labels", "unseen"))
            made["data"] = self.build(DataConfig, data, "data")
        return made

    def parties(self, run: dict[str, Any], device: str | None) -> tuple[PartyConfig, ...]:
        self.models = self.table("models")
        for name, model in self.models.items():
            self.keys(table_of(model, f"models.{name}", self.source), "model", f"models.{name}")
        self.checked("defaults")
        return tuple(self._party(name, own, device) for name, own in self.named().items())

    def _party(self, name: str, own: dict[str, Any], device: str | None) -> PartyConfig:
        where = f"party.{name}"
        levels = self.levels(name, own)
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
        self.own_device(values, device, where)
        values["task"] = task = resolve_task(self, layers, where)
        values["model"] = resolve_model(self, layers, where, models=self.models)
        below = {"max_length": 768} if task.kind == "generation" else {}
        values["train"] = self.train(levels, below=below)
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
