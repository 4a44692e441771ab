"""Which key stands where, and the one line for a key that does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from python_api.config.schema import (
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PretrainConfig,
    TaskConfig,
    TrainConfig,
)
from python_api.errors import InputError

__all__ = ["CHOICE_KEYS", "PLACES", "check_keys", "nearest", "table_of"]

TRAIN = tuple(TrainConfig.model_fields)
MODEL = tuple(key for key in ModelConfig.model_fields if key != "shared")
PRETRAIN = tuple(PretrainConfig.model_fields)
TASK = tuple(TaskConfig.model_fields)
SCALARS = ("algorithm", "seed", "rounds", "device")
CHOICE_KEYS = ("rank", "alpha", "modules", "slots", "device")  # of a party, beside [train]'s
DEFAULTS = (*CHOICE_KEYS, *TRAIN, "model", "task")

# place -> its keys; the first place that has a key is the one that a hint names
PLACES: dict[str, tuple[str, ...]] = {
    "top": (*SCALARS, "train", "eval", "h2tune", "defaults", "models", "party"),
    "train": TRAIN,
    "eval": tuple(EvalConfig.model_fields),
    "h2tune": tuple(H2TuneConfig.model_fields),
    "defaults": DEFAULTS,
    "party": ("name", *DEFAULTS),
    "model": MODEL,
    "task": TASK,
    "pretrain": PRETRAIN,
}
BELONGS = {
    "top": "at the top of the file, before the first [table]",
    "train": "under [train], [defaults] or a [[party]]",
    "eval": "under [eval]",
    "h2tune": "under [h2tune]",
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


def check_keys(values: Mapping[str, Any], place: str, where: str, source: str) -> None:
    """Refuse the first key of `values` that is not known at `place`.

    where: the dotted place as the user writes it ("" at the top); source: the file.
    """
    for key in values:
        if key in PLACES[place]:
            continue
        name = f"{where}.{key}" if where else str(key)
        # First: a known key below the wrong header, the commonest slip of TOML.
        for other, keys in PLACES.items():
            if key in keys:
                raise InputError(f"{source}: {name}: `{key}` belongs {BELONGS[other]}")
        if (close := nearest(key, PLACES[place])) is not None:
            raise InputError(f"{source}: {name}: unknown key; nearest known: {close}")
        everywhere = {k: p for p, keys in PLACES.items() for k in keys}
        if (far := nearest(key, everywhere)) is not None:
            place_of = next(p for p, keys in PLACES.items() if far in keys)
            raise InputError(
                f"{source}: {name}: unknown key; nearest known: {far}, {BELONGS[place_of]}"
            )
        raise InputError(
            f"{source}: {name}: unknown key; expected one of {', '.join(PLACES[place])}"
        )


def table_of(value: object, where: str, source: str) -> dict[str, Any]:
    """`value` as a table, or one line."""
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: {where}: {value!r}; expected a table")
    return dict(value)
