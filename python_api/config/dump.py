"""A resolved config as TOML that loads back to an equal one."""

from __future__ import annotations

from typing import Any

from python_api.config.schema import ModelConfig, PartyConfig, RunConfig, Table, TrainConfig

__all__ = ["dump_config"]


def dump_config(config: RunConfig) -> str:
    """TOML with every key and absolute paths; the first line is `algorithm = "..."`.

    >>> from python_api.config import load_config
    >>> dump_config(load_config("h2tune")).splitlines()[0]
    'algorithm = "h2tune"'
    """
    import tomli_w

    values: dict[str, Any] = {
        "algorithm": config.algorithm,
        "seed": config.seed,
        "rounds": config.rounds,
        "device": config.device,
        "train": _train(config.train),
        "eval": _plain(config.eval),
        "h2tune": _plain(config.h2tune),
    }
    shared = {p.model.shared: p.model for p in config.parties if p.model.shared is not None}
    if shared:
        values["models"] = {str(name): _model(model) for name, model in shared.items()}
    frozen = config.algorithm == "h2tune" and config.h2tune.basis != "trained"
    values["party"] = [_party(party, config, scaled=not frozen) for party in config.parties]
    return tomli_w.dumps(values)


def _party(party: PartyConfig, config: RunConfig, *, scaled: bool) -> dict[str, Any]:
    values = _plain(party, leave=("train", "model", "task"))
    if not scaled:
        del values["alpha"]  # basis = "svd" refuses it
    mine, common = _train(party.train), _train(config.train)
    values |= {key: value for key, value in mine.items() if common.get(key) != value}
    values["model"] = party.model.shared or _model(party.model)
    # built-in data brings its columns, and its test split, whose size stands in its name
    brought = ("test", "text", "label") if party.task.data is not None else ()
    values["task"] = _plain(party.task, leave=brought)
    return values


def _train(train: TrainConfig) -> dict[str, Any]:
    """epochs and steps exclude each other in a file."""
    values = _plain(train)
    if "steps" in values:
        del values["epochs"]
    return values


def _model(model: ModelConfig) -> dict[str, Any]:
    values = _plain(model, leave=("shared", "pretrain"))
    if model.path is not None:
        for key in ("kind", "hidden_size", "layers", "heads"):
            values.pop(key, None)
    else:
        values["pretrain"] = _plain(model.pretrain)
    if not model.config:
        values.pop("config")
    return values


def _plain(table: Table, *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in type(table).model_fields:
        value = getattr(table, key)
        if key in leave or value is None or value == ():
            continue
        values[key] = list(value) if isinstance(value, tuple) else value
    return values
