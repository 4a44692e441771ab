"""A party's model: which level names it, and what it resolves to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from python_api.config.keys import nearest, table_of
from python_api.config.reader import Layers, Reader
from python_api.config.schema import ModelConfig, PretrainConfig
from python_api.errors import InputError

__all__ = ["resolve_model"]

PRETRAIN_LIMIT = 50_000_000  # parameters; that of models/build.py, which imports torch


def resolve_model(
    read: Reader, layers: Layers, where: str, *, models: Mapping[str, Any]
) -> ModelConfig:
    """The last level that names a model; `--set` merges key by key into it.

    models: the tables of [models].
    """
    value: Any = {}
    for place, level in layers:
        if "model" not in level:
            continue
        new = level["model"]
        merged = place.startswith("--set") and isinstance(new, Mapping)
        if merged and isinstance(value, str):
            raise InputError(
                f"{read.source}: {place}.model: the model is [models.{value}]; expected "
                f"--set models.{value}.KEY=..."
            )
        value = {**value, **new} if merged else new
    shared = None
    if isinstance(value, str):
        shared = value
        if value not in models:
            known = ", ".join(models) or "none"
            near = nearest(value, models)
            hint = f"nearest known: {near}" if near else f"[models] has {known}"
            raise InputError(f"{read.source}: {where}.model: no model {value!r}; {hint}")
        place = f"models.{value}"
        value = models[value]
    else:
        place = f"{where}.model"
    values = table_of(value, place, read.source)
    read.keys(values, "model", place)
    if values.get("path") is not None:
        for key in ("kind", "hidden_size", "layers", "heads", "config", "pretrain"):
            if key in values:
                raise InputError(f"{read.source}: {place}: path and {key}; expected path alone")
        values["kind"] = None
        values["path"] = _model_path(read, values["path"], place)
    values["pretrain"] = _pretrain(read, values.get("pretrain"), shared, place)
    model = read.build(ModelConfig, values | {"shared": shared}, place)
    if model.path is None and model.hidden_size % model.heads:
        raise InputError(
            f"{read.source}: {place}.heads: {model.heads} does not divide hidden_size = "
            f"{model.hidden_size}; expected a divisor"
        )
    if model.path is None and model.pretrain.text is None:
        model = _default_text(model)
    return model


def _default_text(model: ModelConfig) -> ModelConfig:
    """What pre-training reads where nothing is said, written out.

    Above `PRETRAIN_LIMIT` the default is none. Near it, or with further keys that change sizes,
    only transformers can count; then it stays open here, and `models.pretrain.recipe` decides.
    """
    # more than any family built from these sizes has: rows of every matrix, ids and positions
    at_most = 32 * model.layers * model.hidden_size**2 + 65_536 * model.hidden_size
    if model.config or at_most > PRETRAIN_LIMIT:
        return model
    text = "own" if model.shared is None else "builtin"
    plan = model.pretrain.model_copy(update={"text": text})
    return model.model_copy(update={"pretrain": plan})


def _model_path(read: Reader, value: Any, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{read.source}: {place}.path: {value!r}; expected a folder or a name")
    here = read.path(value)
    # `owner/name` is a Hub name unless a folder of that name stands beside the config
    local = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(here).exists()
    return here if local else value


def _pretrain(read: Reader, value: Any, shared: str | None, place: str) -> PretrainConfig:
    if value is None:
        value = {}
    if isinstance(value, str):
        value = {"text": value}
    where = f"{place}.pretrain"
    values = table_of(value, where, read.source)
    read.keys(values, "pretrain", where)
    text = values.get("text")
    if text == "none":
        values["steps"] = 0
    elif text == "own" and shared is not None:
        raise InputError(
            f'{read.source}: {where}.text: "own" is no text that all parties hold; expected '
            '"builtin", "none" or a file'
        )
    elif isinstance(text, str) and text not in ("own", "builtin"):
        values["text"] = read.path(text)
    return read.build(PretrainConfig, values, where)
