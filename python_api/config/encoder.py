"""A vertical party's encoder: merged key by key over all levels."""

from __future__ import annotations

from typing import Any

from python_api.config.keys import table_of
from python_api.config.reader import Layers, Reader
from python_api.config.schema import EncoderConfig
from python_api.errors import InputError

__all__ = ["resolve_encoder"]


def resolve_encoder(read: Reader, layers: Layers, where: str) -> EncoderConfig:
    """Key by key over all levels, so that [defaults] may hold `out` and a party its `hidden`."""
    values: dict[str, Any] = {}
    for place, level in layers:
        if "model" not in level:
            continue
        if isinstance(level["model"], str):
            raise InputError(
                f"{read.source}: {place}.model: {level['model']!r}; expected a table, such as "
                '{ kind = "mlp", hidden = [64], out = 32 }'
            )
        new = table_of(level["model"], f"{place}.model", read.source)
        read.keys(new, "model", f"{place}.model")
        if "kind" in new and new["kind"] != values.get("kind", "mlp"):
            values.pop("shape", None)  # that of another kind
        values |= new
    where = f"{where}.model"
    for key in ("hidden", "shape"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    shape = values.get("shape")
    if shape is not None and not _is_shape(shape):
        shown = list(shape) if isinstance(shape, tuple) else shape
        raise InputError(
            f"{read.source}: {where}.shape: {shown!r}; expected [channels, height, width], three "
            "whole numbers of at least 1"
        )
    made = read.build(EncoderConfig, values, where)
    if made.kind == "cnn" and made.shape is None:
        raise InputError(
            f"{read.source}: {where}.shape: is missing; expected [channels, height, width] for "
            'kind = "cnn"'
        )
    if made.kind == "mlp" and made.shape is not None:
        raise InputError(
            f'{read.source}: {where}.shape: is not read for kind = "mlp"; expected kind = "cnn"'
        )
    return made


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(type(size) is int and size >= 1 for size in value)
    )
