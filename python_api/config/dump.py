"""A resolved config as TOML that loads back to an equal one."""

from __future__ import annotations

from typing import Any

from python_api.config.ignored import READS_TABLES
from python_api.config.keys import TEXT_ONLY
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
    }
    values |= _tables(config) if config.setting == "vertical" else _tuning(config)
    return tomli_w.dumps(values)


def _tuning(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "train": _train(config.train),
        "eval": _plain(config.eval),
        "h2tune": _plain(config.h2tune),
    }
    # read by nobody here; they stand where they were written
    if config.data is not None:
        values["data"] = _given(config.data)
    if config.proto_evfl.model_fields_set:
        values["proto_evfl"] = _given(config.proto_evfl)
    parties = config.tuning_parties
    shared = {p.model.shared: p.model for p in parties if p.model.shared is not None}
    if shared:
        values["models"] = {str(name): _model(model) for name, model in shared.items()}
    frozen = config.algorithm == "h2tune" and config.h2tune.basis != "trained"
    values["party"] = [_party(party, config, scaled=not frozen) for party in parties]
    return values


def _tables(config: RunConfig) -> dict[str, Any]:
    assert config.data is not None
    reads = READS_TABLES.get(config.algorithm)
    method = _plain(config.proto_evfl)
    if reads is not None:  # a baseline's: what it reads, and what was written
        kept = {*reads, *config.proto_evfl.model_fields_set}
        method = {key: value for key, value in method.items() if key in kept}
    elif "adjust" not in config.proto_evfl.model_fields_set:
        del method["adjust"]  # a baseline's alone
    values: dict[str, Any] = {
        "train": _train(config.train, leave=TEXT_ONLY),
        "eval": {"every": config.eval.every},
        "data": _plain(config.data),
        "proto_evfl": method,
    }
    if config.h2tune.model_fields_set:
        values["h2tune"] = _given(config.h2tune)
    common = _train(config.train)
    values["party"] = []
    for party in config.vertical_parties:
        own = _plain(party, leave=("train", "model"))
        if not party.active:
            del own["active"]
        mine = _train(party.train)
        own |= {key: value for key, value in mine.items() if common.get(key) != value}
        values["party"].append(own | {"model": _plain(party.model)})
    return values


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


def _train(train: TrainConfig, *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """epochs and steps exclude each other in a file."""
    values = _plain(train, leave=leave)
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
        value, field = getattr(table, key), type(table).model_fields[key]
        if key in leave or value is None or (value == () and field.default == ()):
            continue
        values[key] = list(value) if isinstance(value, tuple) else value
    return values


def _given(table: Table) -> dict[str, Any]:
    """What was written of a table, empty lists too."""
    values = {key: getattr(table, key) for key in sorted(table.model_fields_set)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }
