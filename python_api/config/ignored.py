"""The table of an algorithm that does not run: checked, ignored, and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from python_api.config.presets import preset, vertical_preset
from python_api.config.schema import RunConfig
from python_api.config.table import Table

__all__ = ["READS", "READS_TABLES", "ignored"]

# What a baseline reads of [h2tune], so that it runs beside H2Tune with the same schedule.
READS = {
    "local": ("basis", "alternate"),
    "centralised": ("basis", "alternate"),
    "fedit": ("basis", "alternate", "weight", "min_replies"),
}
# What one on tables reads of [proto_evfl]: steps per cycle, who must answer, the temperature.
CYCLE = ("preset", "lower", "upper", "min_replies", "tau")
READS_TABLES = {
    "centralised": CYCLE,
    "vfl_local": CYCLE,
    "vfl_vanilla": CYCLE,
    "vfl_balanced": CYCLE,
    "vfl_masked": (*CYCLE, "adjust"),
    "fixmatch_lite": (*CYCLE, "adjust"),
    "fedcvt_lite": CYCLE,
}


def ignored(config: RunConfig) -> str | None:
    """One line if a table was written for an algorithm that does not read all of it.

    >>> from python_api.config import load_config
    >>> ignored(load_config("local", {"h2tune.share": False}))
    '[h2tune]: share is ignored; local reads basis, alternate'
    >>> ignored(load_config("local"))
    >>> ignored(load_config("local", {"data.overlap": 0.1}))
    '[data]: overlap is ignored; local reads none of it'
    """
    name = config.algorithm
    if config.setting == "tuning":
        set_by_basis = preset(name, {"basis": config.h2tune.basis}).h2tune
        found = [
            _ignored(name, "h2tune", config.h2tune, READS.get(name), set_by_basis),
            _ignored(name, "data", config.data, (), {}),
            _ignored(name, "proto_evfl", config.proto_evfl, (), {}),
        ]
    else:
        set_by_preset = vertical_preset({"preset": config.proto_evfl.preset}).proto_evfl
        # of proto_evfl itself: one key is a baseline's
        own = tuple(key for key in type(config.proto_evfl).model_fields if key != "adjust")
        reads = READS_TABLES.get(name, own)
        found = [
            _ignored(name, "proto_evfl", config.proto_evfl, reads, set_by_preset),
            _ignored(name, "h2tune", config.h2tune, (), {}),
        ]
    return "; ".join(line for line in found if line) or None


def _ignored(
    algorithm: str,
    name: str,
    given: Table | None,
    reads: tuple[str, ...] | None,
    preset: Mapping[str, Any],
) -> str | None:
    """reads: the keys that the algorithm reads; None: all. preset: values that no user wrote."""
    if given is None or reads is None:
        return None
    names = [
        key
        for key in type(given).model_fields
        if key in given.model_fields_set - set(reads) and getattr(given, key) != preset.get(key)
    ]
    if not names:
        return None
    # all of them stand in a resolved config.toml
    most = ", ".join(names) if len(names) <= 4 else f"{len(names)} keys"
    verb = "is" if len(names) == 1 else "are"
    what = ", ".join(reads) if len(reads) <= 8 else "the others"
    return f"[{name}]: {most} {verb} ignored; {algorithm} reads {what or 'none of it'}"
