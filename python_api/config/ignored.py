"""The table of an algorithm that does not run: checked, ignored, and named."""

from __future__ import annotations

from python_api.config.presets import preset
from python_api.config.schema import RunConfig

__all__ = ["READS", "ignored"]

# What a baseline reads of [h2tune], so that it runs beside H2Tune with the same schedule.
READS = {
    "local": ("basis", "alternate"),
    "centralised": ("basis", "alternate"),
    "fedit": ("basis", "alternate", "weight", "min_replies"),
}


def ignored(config: RunConfig) -> str | None:
    """One line if [h2tune] was written for an algorithm that does not read all of it.

    >>> from python_api.config import load_config
    >>> ignored(load_config("local", {"h2tune.share": False}))
    '[h2tune]: share is ignored; local reads basis, alternate'
    >>> ignored(load_config("local"))
    """
    reads = READS.get(config.algorithm)
    if reads is None:
        return None
    given = config.h2tune
    set_by_basis = preset(config.algorithm, {"basis": given.basis}).h2tune
    names = [
        key
        for key in type(given).model_fields
        if key in given.model_fields_set - set(reads)
        and getattr(given, key) != set_by_basis.get(key)
    ]
    if not names:
        return None
    # all of them stand in a resolved config.toml
    most = ", ".join(names) if len(names) <= 4 else f"{len(names)} keys"
    verb = "is" if len(names) == 1 else "are"
    return f"[h2tune]: {most} {verb} ignored; {config.algorithm} reads {', '.join(reads)}"
