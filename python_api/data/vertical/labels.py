"""The label space, and who holds labels of what."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from python_api.data.vertical.tables import PartyTable
from python_api.data.words import listed
from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.config import DataConfig

__all__ = ["check_training", "label_space", "true_labels"]


def label_space(data: DataConfig, tables: Mapping[str, PartyTable]) -> tuple[str, ...]:
    """`data.labels`, or those that parties hold; numbers in their order.

    Raises:
        InputError: a label outside `data.labels` (file and line), a class that nobody has, or
            fewer than two; an unseen class that is none of them, or that leaves fewer than two.
    """
    found: dict[str, None] = {}
    for table in tables.values():
        for index, label in enumerate(table.labels or ()):
            if label is None:
                continue
            if data.labels and label not in data.labels:
                raise InputError(
                    f"{table.rows.where(index)}: label {label!r}; expected one of data.labels: "
                    f"{listed(data.labels)}"
                )
            found[label] = None
    labels = data.labels or tuple(sorted(found, key=_order))
    for label in labels:
        if label not in found:
            raise InputError(
                f"data.labels: nobody has a row of class {label!r}; expected only classes that a "
                f"party has labels of: {listed(sorted(found, key=_order))}"
            )
    if len(labels) < 2:
        got = f"one class, {labels[0]!r}" if labels else "no label at all"
        raise InputError(f"data.label: {got} in {data.label!r}; expected two classes or more")
    for label in data.unseen:
        if label not in labels:
            raise InputError(f"data.unseen: no class {label!r}; expected some of {listed(labels)}")
    if len(labels) - len(data.unseen) < 2:
        raise InputError(
            f"data.unseen: {listed(data.unseen)} of {len(labels)} classes; expected to leave the "
            "active party two or more"
        )
    return labels


def true_labels(tables: Mapping[str, PartyTable], active: str) -> tuple[dict[str, str], list[str]]:
    """(id -> label, notes): the active party's word, or else that of a party with labels."""
    truth: dict[str, str] = {}
    notes = []
    for name in (active, *(name for name in tables if name != active)):
        table = tables[name]
        other = 0
        for id, label in zip(table.ids, table.labels or (), strict=False):
            if label is not None and truth.setdefault(id, label) != label:
                other += 1
        if other:
            verb = "differs" if other == 1 else "differ"
            notes.append(f"{name}: {other} of its labels {verb} from what another party has there")
        none = sum(label is None for label in table.labels or ())
        if none:
            what = "one row has" if none == 1 else f"{none} rows have"
            notes.append(f"{name}: {what} no label; training only")
    return truth, notes


def check_training(
    tables: Mapping[str, PartyTable],
    train: Mapping[str, Collection[str]],
    labels: Sequence[str],
    unseen: Sequence[str],
    active: str,
) -> None:
    """Every class must be shown to somebody who is there.

    Raises:
        InputError: a class that the active party lacks and that is not named in `data.unseen`; an
            unseen class of which no other party holds labels.
    """
    held = {
        name: {
            label
            for id, label in zip(table.ids, table.labels or (), strict=False)
            if label is not None and id in train[name]
        }
        for name, table in tables.items()
    }
    for label in labels:
        others = [name for name in tables if name != active and label in held[name]]
        if label in unseen and not others:
            raise InputError(
                f"data.unseen: no party but {active} has training rows labelled {label!r}; "
                "expected a passive party with label = ... that has some: a class that nobody "
                "shows cannot be learned"
            )
        if label not in unseen and label not in held[active]:
            where = f"only {' and '.join(others)} has" if others else "nobody has"
            raise InputError(
                f"data.labels: {where} training rows labelled {label!r}; expected some at "
                f"{active}, the active party, or the class in data.unseen"
            )


def _order(label: str) -> tuple[int, int, str]:
    """Whole numbers by value, then texts."""
    return (0, int(label), "") if re.fullmatch(r"-?\d+", label) else (1, 0, label)
