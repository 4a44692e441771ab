"""A party's private data: rows to labelled examples, split by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from python_api.data.loaders import Rows, read_rows
from python_api.data.words import listed
from python_api.errors import InputError
from python_api.federation.seeds import seed_for

if TYPE_CHECKING:
    from python_api.config import TaskConfig

__all__ = ["Example", "TaskData", "load_task", "split", "task_from_rows"]

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One item. For generation `text` is the question.

    label: its place in `TaskData.labels`; None for generation, or where a row has no label.
    answer: the worked answer (generation).
    """

    text: str
    label: int | None = None
    answer: str | None = None


@dataclass(frozen=True)
class TaskData:
    """The splits of one party's task.

    labels: the class names, sorted; those of the training rows. Empty for generation.
    """

    kind: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]


def load_task(task: TaskConfig, *, seed: int, party: str) -> TaskData:
    """Read and split a party's task.

    `test` and `validation` are files, or shares that the seed of (run, party) draws, each class
    with its own share. The test share leaves first.

    Raises:
        InputError: a file, a line, a column or a label, and what was expected.
    """
    if task.data is not None:
        from python_api.data.builtin import builtin_task

        assert not isinstance(task.validation, str)  # refused where built-in data is named
        return builtin_task(task.data, seed=seed, validation=task.validation)
    assert task.train is not None
    where = f"party.{party}.task"
    items = _items(read_rows(task.train, columns=task.columns), task)

    def stratum(item: _Item) -> str:
        return item.target if task.kind == "classification" else ""

    test: list[_Item] = []
    if isinstance(task.test, str):
        test = _items(read_rows(task.test, columns=task.columns), task)
    elif task.test:
        draw = random.Random(seed_for(seed, 0, party, "test split"))
        items, test = split(items, task.test, draw=draw, key=stratum)
    validation: list[_Item] = []
    if isinstance(task.validation, str):
        validation = _items(read_rows(task.validation, columns=task.columns), task)
    elif task.validation:
        draw = random.Random(seed_for(seed, 0, party, "validation split"))
        items, validation = split(items, task.validation, draw=draw, key=stratum)
    if task.kind == "generation":
        made = [
            tuple(Example(i.text, answer=i.target) for i in s) for s in (items, validation, test)
        ]
        return TaskData(task.kind, made[0], made[1], made[2], ())
    labels = tuple(sorted({item.target for item in items}))
    if len(labels) < 2:
        raise InputError(
            f"{where}.label: {task.train} has one label, {labels[0]!r}; expected two or more"
        )
    place = {label: number for number, label in enumerate(labels)}
    for name, rows in (("validation", validation), ("test", test)):
        for item in rows:
            if item.target not in place:
                raise InputError(
                    f"{item.where}: label {item.target!r} is only in the {name} rows; expected one "
                    f"of the training labels: {listed(labels)}"
                )
    made = [
        tuple(Example(item.text, place[item.target]) for item in rows)
        for rows in (items, validation, test)
    ]
    return TaskData(task.kind, made[0], made[1], made[2], labels)


def task_from_rows(
    rows: Sequence[dict[str, str]], task: TaskConfig, *, labels: Sequence[str] | None = None
) -> tuple[Example, ...]:
    """Rows to predict or evaluate on; a label or an answer may be missing.

    labels: the class names; without them labels are not read.

    Raises:
        InputError: a row without a text column, or a label that is none of `labels`.
    """
    place = {label: number for number, label in enumerate(labels or ())}
    column = task.label if task.kind == "classification" else task.answer
    found = []
    for index, row in enumerate(rows):
        text = _joined(row, _columns(task), _where(rows, index))
        target = row.get(column or "")
        if task.kind == "generation":
            found.append(Example(text, answer=None if target is None else str(target)))
            continue
        if labels is not None and target and target not in place:
            raise InputError(
                f"{_where(rows, index)}: label {target!r}; expected one of {listed(labels)}"
            )
        found.append(Example(text, place.get(target or "")))
    return tuple(found)


def split(
    items: Sequence[T], share: float, *, draw: random.Random, key: Callable[[T], str]
) -> tuple[list[T], list[T]]:
    """(rest, drawn): `share` of the items of each class, at least one of a class stays.

    Both keep the order of `items`. Over all classes round(share * n) items are drawn (fewer
    where classes have one item), the parts below one going to the classes that lack most.

    >>> split("aabbb", 0.4, draw=random.Random(0), key=str)
    (['a', 'b', 'b'], ['a', 'b'])
    """
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key(item), []).append(index)
    counts = {name: min(int(share * len(g)), len(g) - 1) for name, g in groups.items()}
    # largest remainder; a tie goes to the name that sorts first
    by_need = sorted(groups, key=lambda name: (counts[name] - share * len(groups[name]), name))
    left = round(share * len(items)) - sum(counts.values())
    for name in by_need:
        if left > 0 and counts[name] < len(groups[name]) - 1:
            counts[name] += 1
            left -= 1
    drawn: set[int] = set()
    for name in sorted(groups):
        drawn.update(draw.sample(groups[name], counts[name]))
    rest = [item for index, item in enumerate(items) if index not in drawn]
    return rest, [items[index] for index in sorted(drawn)]


@dataclass(frozen=True)
class _Item:
    """A row with its target still a text. where: `file:line`."""

    text: str
    target: str
    where: str


def _items(rows: Rows, task: TaskConfig) -> list[_Item]:
    column = task.label if task.kind == "classification" else task.answer
    assert column is not None
    found = []
    for index, row in enumerate(rows):
        where = rows.where(index)
        text = _joined(row, _columns(task), where)
        target = row.get(column)
        if target is None:
            raise InputError(f"{where}: no column {column!r}; found {', '.join(row) or 'none'}")
        if not target.strip():
            raise InputError(f"{where}: column {column!r} is empty; expected a text")
        found.append(_Item(text, target, where))
    return found


def _columns(task: TaskConfig) -> tuple[str, ...]:
    return task.text if task.kind == "classification" else (task.question or "",)


def _joined(row: dict[str, str], columns: Sequence[str], where: str) -> str:
    for column in columns:
        if column not in row:
            raise InputError(f"{where}: no column {column!r}; found {', '.join(row) or 'none'}")
    return "\n".join(str(row[column]) for column in columns)


def _where(rows: Sequence[dict[str, str]], index: int) -> str:
    return rows.where(index) if isinstance(rows, Rows) else f"row {index + 1}"
