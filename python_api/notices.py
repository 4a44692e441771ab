"""What a run does without an error and a user would hardly want: one line for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_api.config import RunConfig

__all__ = ["notices"]


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
    return (*_unmeasured(rows), *_unshared(config, slots))


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
