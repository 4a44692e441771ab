"""What a run does without an error and a user would hardly want: one line for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_api.config import RunConfig

__all__ = ["device_notices", "notices"]


def notices(
    config: RunConfig,
    *,
    rows: Mapping[str, Mapping[str, int]],
    slots: Mapping[str, Sequence[str]],
) -> tuple[str, ...]:
    """One line for each thing that will silently not happen.

    rows: per party the rows of `"train"`, `"validation"` and `"test"`; slots: per party the module
    slots that its model has and its `modules` name.

    >>> from python_api.config import load_config
    >>> config = load_config("h2tune")
    >>> notices(config, rows={"topic": {"test": 0}}, slots={"sentiment": ["q"], "topic": ["v"]})[0]
    'party.topic.task.test: no test rows; topic is trained and never measured on a test split'
    """
    if config.setting == "vertical":
        return (*_unmeasured_tables(config, rows), *_unsaid(config))
    return (*_unmeasured(rows), *_unshared(config, slots))


def device_notices(config: RunConfig) -> tuple[str, ...]:
    """Parties whose device is not on this machine."""
    import torch

    devices = {p.name: p.device or config.device for p in config.parties}
    return tuple(
        f"party.{name}: device {device} is not on this machine; run would exit 2"
        for name, device in devices.items()
        if device.startswith("cuda") and not torch.cuda.is_available()
    )


def _unmeasured_tables(config: RunConfig, rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    """All parties hold the same ids of test and validation."""
    lines = []
    if any(counts.get("test") == 0 for counts in rows.values()):
        lines.append("data.test: no test rows; the run is never measured on a test split")
    best = any(party.train.keep == "best" for party in config.parties)
    if best and any(counts.get("validation") == 0 for counts in rows.values()):
        lines.append('data.validation: no validation rows; keep = "best" keeps the last model')
    return lines


def _unsaid(config: RunConfig) -> list[str]:
    """Cosines between classes help one way to an unseen class alone."""
    keys, data = config.proto_evfl, config.data
    if config.algorithm != "proto_evfl" or data is None or not data.unseen:
        return []
    if keys.share != "relations" or keys.unseen == "relations":
        return []
    return [
        f'proto_evfl.share: "relations" sends no prototype, from which unseen = "{keys.unseen}" '
        f'would know {", ".join(data.unseen)}; unseen = "relations" reads what is sent'
    ]


def _unmeasured(rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"party.{name}.task.test: no test rows; {name} is trained and never measured on a test "
        "split"
        for name, counts in rows.items()
        if counts.get("test") == 0
    ]


def _unshared(config: RunConfig, slots: Mapping[str, Sequence[str]]) -> list[str]:
    """Parties whose slots nobody else has: matrices are shared slot by slot."""
    if config.algorithm != "h2tune" or config.h2tune.share is not True or len(slots) < 2:
        return []
    alone = [
        name
        for name, own in slots.items()
        if not any(set(own) & set(other) for n, other in slots.items() if n != name)
    ]
    if not alone:
        return []
    told = "; ".join(f"{name} has {' '.join(slots[name])}" for name in alone)
    return [
        "h2tune.share: nothing can be shared with a party that has no module slot in common with "
        f"another: {told}"
    ]
