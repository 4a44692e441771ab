"""GRID.toml: the seeds and the rows of a sweep, and every line that says what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_api.config.keys import nearest
from python_api.errors import InputError

__all__ = ["Grid", "Row", "load_grid"]

TOP = ("seed", "metric", "split", "party", "row")
ROW = ("name", "set")


@dataclass(frozen=True)
class Row:
    """One line of the table: its name, and what is set for it, with keys as `--set` takes them."""

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as a file system takes it."""
        return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", self.name).strip(".-") or "row"


@dataclass(frozen=True)
class Grid:
    """seeds times rows; the first row is what the others are paired with.

    party: whose values count; empty: every party that has the metric.
    """

    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    metric: str = "accuracy"
    split: str = "test"
    party: tuple[str, ...] = ()


def load_grid(source: str | Path | Mapping[str, Any]) -> Grid:
    """The grid of a TOML file, or of a dict like one.

    Errors: `InputError`, one line that names the file, the key or row, and what was expected.

    >>> grid = load_grid({"seed": [0, 1], "row": [{"name": "a"}, {"name": "b", "set": {"x": 1}}]})
    >>> grid.seeds, [row.name for row in grid.rows], grid.metric
    ((0, 1), ['a', 'b'], 'accuracy')
    """
    values, name = _read(source)
    _keys(values, TOP, name, "")
    return Grid(
        seeds=_seeds(values.get("seed"), name),
        rows=_rows(values.get("row"), name),
        metric=_text(values.get("metric", "accuracy"), f"{name}: metric"),
        split=_text(values.get("split", "test"), f"{name}: split"),
        party=_parties(values.get("party", ()), name),
    )


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(source), "grid"
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a TOML file with seed = [...], [[row]]")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig")), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def _keys(values: Mapping[str, Any], known: tuple[str, ...], name: str, where: str) -> None:
    for key in values:
        if key in known:
            continue
        if known is ROW and key in TOP:
            hint = f"`{key}` belongs at the top of the file, before the first [[row]]"
        elif (near := nearest(str(key), known)) is not None:
            hint = f"unknown key; nearest known: {near}"
        elif known is ROW:
            hint = "unknown key; expected name and set = { ... }, which takes the config's keys"
        else:
            hint = f"unknown key; expected one of {', '.join(known)}"
        raise InputError(f"{name}: {where}{key}: {hint}")


def _seeds(value: Any, name: str) -> tuple[int, ...]:
    if value is None:
        raise InputError(f"{name}: no seed; expected seed = [0, 1, 2]")
    whole = isinstance(value, list | tuple) and all(type(seed) is int for seed in value)
    if not whole or not value:
        raise InputError(f"{name}: seed: {value!r}; expected a list of whole numbers")
    twice = next((seed for seed in value if value.count(seed) > 1), None)
    if twice is not None:
        raise InputError(f"{name}: seed: {twice} stands twice; expected each seed once")
    return tuple(value)


def _rows(value: Any, name: str) -> tuple[Row, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{name}: row: expected one [[row]] table or more")
    rows: list[Row] = []
    for number, table in enumerate(value, 1):
        if not isinstance(table, Mapping):
            raise InputError(f"{name}: row {number}: {table!r}; expected a [[row]] table")
        _keys(table, ROW, name, f"row {number}: ")
        if "name" not in table:
            raise InputError(f"{name}: row {number}: no name; expected name = ...")
        row = Row(_text(table["name"], f"{name}: row {number}: name"), table.get("set", {}))
        if not isinstance(row.set, Mapping):
            raise InputError(
                f"{name}: row {number}: set: {row.set!r}; expected a table of the config's keys"
            )
        if "seed" in row.set:
            raise InputError(
                f"{name}: row {row.name}: set.seed: expected seed = [...] at the top of the file"
            )
        for at, other in enumerate(rows, 1):
            if other.name == row.name:
                raise InputError(
                    f"{name}: row {number}: name {row.name!r} is taken by row {at}; expected "
                    "another"
                )
            if other.folder.lower() == row.folder.lower():
                raise InputError(
                    f"{name}: row {number}: name {row.name!r} gives the folder of row {at}, "
                    f"{other.name!r}; expected one that differs in letters or digits"
                )
        rows.append(row)
    return tuple(rows)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {value!r}; expected a text")
    return value


def _parties(value: Any, name: str) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(p, str) and p for p in given):
        raise InputError(f"{name}: party: {value!r}; expected a party's name, or a list of them")
    return tuple(given)
