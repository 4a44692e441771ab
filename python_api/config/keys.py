"""Which key stands where, and the one line for a key that does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from python_api.config.schema import (
    DataConfig,
    EncoderConfig,
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PretrainConfig,
    ProtoEvflConfig,
    TaskConfig,
    TrainConfig,
)
from python_api.config.settings import Setting
from python_api.errors import InputError

__all__ = ["CHOICE_KEYS", "PLACES", "TABLE_KEYS", "TEXT_ONLY", "check_keys", "nearest", "table_of"]

TRAIN = tuple(TrainConfig.model_fields)
EVAL = tuple(EvalConfig.model_fields)
H2TUNE = tuple(H2TuneConfig.model_fields)
DATA = tuple(DataConfig.model_fields)
PROTO_EVFL = tuple(ProtoEvflConfig.model_fields)
SCALARS = ("algorithm", "seed", "rounds", "device")

# fine-tuning
CHOICE_KEYS = ("rank", "alpha", "modules", "slots", "device")  # of a party, beside [train]'s
DEFAULTS = (*CHOICE_KEYS, *TRAIN, "model", "task")

# vertical: of a party, beside [train]'s; and what means nothing to tables
TABLE_KEYS = ("id", "features", "categorical", "label", "device", "l_ct")
TEXT_ONLY = (
    "accumulate",
    "head_lr",
    "max_length",
    "adapters",
    "precision",
    "gradient_checkpointing",
    "schedule",
    "class_weight",
    "limit",
    "max_new_tokens",
)
TRAIN_TABLES = tuple(key for key in TRAIN if key not in TEXT_ONLY)
EVAL_TABLES = ("every",)
DEFAULTS_TABLES = (*TABLE_KEYS, *TRAIN_TABLES, "model")

# setting -> place -> its keys; the first place that has a key is the one that a hint names
PLACES: dict[Setting, dict[str, tuple[str, ...]]] = {
    "tuning": {
        "top": (*SCALARS, "train", "eval", "h2tune", "defaults", "models", "party"),
        "train": TRAIN,
        "eval": EVAL,
        "h2tune": H2TUNE,
        "defaults": DEFAULTS,
        "party": ("name", *DEFAULTS),
        "model": tuple(key for key in ModelConfig.model_fields if key != "shared"),
        "task": tuple(TaskConfig.model_fields),
        "pretrain": tuple(PretrainConfig.model_fields),
    },
    "vertical": {
        "top": (*SCALARS, "train", "eval", "data", "proto_evfl", "defaults", "party"),
        "train": TRAIN_TABLES,
        "eval": EVAL_TABLES,
        "data": DATA,
        "defaults": DEFAULTS_TABLES,
        "party": ("name", "active", "table", *DEFAULTS_TABLES),
        "model": tuple(EncoderConfig.model_fields),
        "proto_evfl": PROTO_EVFL,
    },
}
# tables of the other setting's algorithms: checked, ignored, and named
FOREIGN: dict[Setting, dict[str, tuple[str, ...]]] = {
    "tuning": {"data": DATA, "proto_evfl": PROTO_EVFL},
    "vertical": {"h2tune": H2TUNE},
}
BELONGS = {
    "top": "at the top of the file, before the first [table]",
    "train": "under [train], [defaults] or a [[party]]",
    "eval": "under [eval]",
    "h2tune": "under [h2tune]",
    "data": "under [data]",
    "proto_evfl": "under [proto_evfl]",
    "defaults": "under [defaults] or a [[party]]",
    "party": "under a [[party]]",
    "model": "in a party's model table",
    "task": "in a party's task table",
    "pretrain": "in a model's pretrain table",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, if one is like it at all.

    >>> nearest("rnak", ["rank", "alpha"])
    'rank'
    """
    found = difflib.get_close_matches(name, list(known), 1, 0.6)
    return found[0] if found else None


def check_keys(
    values: Mapping[str, Any], place: str, where: str, source: str, setting: Setting
) -> None:
    """Refuse the first key of `values` that is not known at `place`.

    where: the dotted place as the user writes it ("" at the top); source: the file.
    """
    places, foreign = PLACES[setting], FOREIGN[setting]
    known = places.get(place) or foreign[place]
    for key in values:
        if key in known or (place == "top" and key in foreign):
            continue
        name = f"{where}.{key}" if where else str(key)
        # First: a known key below the wrong header, the commonest slip of TOML.
        for other, keys in places.items():
            if key in keys:
                raise InputError(f"{source}: {name}: `{key}` belongs {BELONGS[other]}")
        if (reason := _of_the_other(key, setting)) is not None:
            raise InputError(f"{source}: {name}: {reason}")
        if (close := nearest(key, known)) is not None:
            raise InputError(f"{source}: {name}: unknown key; nearest known: {close}")
        everywhere = {k: p for p, keys in places.items() for k in keys}
        if (far := nearest(key, everywhere)) is not None:
            place_of = next(p for p, keys in places.items() if far in keys)
            raise InputError(
                f"{source}: {name}: unknown key; nearest known: {far}, {BELONGS[place_of]}"
            )
        raise InputError(f"{source}: {name}: unknown key; expected one of {', '.join(known)}")


def _of_the_other(key: str, setting: Setting) -> str | None:
    """Why a key of the other setting has no place here."""
    if setting == "vertical" and any(key in keys for keys in PLACES["tuning"].values()):
        return f"`{key}` belongs to fine-tuning and means nothing to tables; expected no such key"
    if setting == "tuning" and any(key in keys for keys in PLACES["vertical"].values()):
        return (
            f"`{key}` belongs to tables by parties; expected no such key, or an algorithm such as "
            "proto_evfl"
        )
    return None


def table_of(value: object, where: str, source: str) -> dict[str, Any]:
    """`value` as a table, or one line."""
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: {where}: {value!r}; expected a table")
    return dict(value)
