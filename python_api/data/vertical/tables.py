"""A party's table: rows, ids, labels, and which columns are features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_api.data.loaders import Rows, read_rows
from python_api.data.vertical.builtin import read_builtin
from python_api.data.vertical.columns import is_missing, survey
from python_api.data.words import listed
from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.config import VerticalPartyConfig

__all__ = ["PartyTable", "read_ids", "read_party", "read_table"]


@dataclass(frozen=True)
class PartyTable:
    """What stands in a party's table.

    ids: one per row, distinct. labels: per row, None for a row without one; None if the party holds
    no labels. kinds: feature column -> "number" or "category".
    """

    name: str
    rows: Rows
    ids: tuple[str, ...]
    labels: tuple[str | None, ...] | None
    kinds: dict[str, str]
    notes: tuple[str, ...]

    def where(self, id: str) -> str:
        """`file:line` of an id that it holds."""
        return self.rows.where(self.ids.index(id))


def read_table(table: str) -> Rows:
    """A file's rows, or those of a built-in table."""
    return read_builtin(table) if table.startswith("builtin:") else read_rows(table)


def read_party(party: VerticalPartyConfig, label: str) -> PartyTable:
    """Read and check a party's table.

    label: the active party's label column. A party that holds no labels loses a column of that
    name here, before anything else is made of its table.

    Raises:
        InputError: a file, a line or a column, and what was expected.
    """
    rows = read_table(party.table)
    where = f"party.{party.name}"
    named = "data.label" if party.active else f"{where}.label"
    for key, column in ((f"{where}.id", party.id), (named, party.label)):
        if column is not None and column not in rows.names:
            raise InputError(
                f"{key}: {rows.path} has no column {column!r}; expected one of {listed(rows.names)}"
            )
    if len(rows) < 2:
        raise InputError(f"{where}.table: {rows.path} has one row; expected two or more")
    notes = []
    taken = {party.id, party.label}
    if label not in taken and label in rows.names:
        taken.add(label)
        if not party.table.startswith("builtin:"):
            notes.append(
                f"{party.name}: column {label!r} is called like the label of the active party and "
                f"is left out (label = {label!r} in its [[party]] says that it holds labels)"
            )
    columns = _features(party, rows, label, taken)
    if "" in columns and not party.features:
        columns.remove("")
        notes.append(f"{party.name}: a column without a name is left out")
    for column in party.categorical:
        if column not in columns:
            raise InputError(
                f"{where}.categorical: no feature {column!r}; expected one of {listed(columns)}"
            )
    kinds, missing = survey(rows, columns, party.categorical)
    lacking = [f"{column} ({count})" for column, count in missing.items() if count]
    if lacking:
        notes.append(f"{party.name}: missing values are imputed: {listed(lacking)}")
    if party.model.shape is not None:
        _check_image(party, rows, kinds)
    labels = None
    if party.label is not None:
        labels = tuple(
            None if is_missing(row.get(party.label)) else row[party.label].strip() for row in rows
        )
    return PartyTable(party.name, rows, read_ids(rows, party.id), labels, kinds, tuple(notes))


def read_ids(rows: Rows, column: str) -> tuple[str, ...]:
    """The ids, as texts without blanks around them.

    Raises:
        InputError: a row without an id, or an id that stands twice.
    """
    found: dict[str, int] = {}
    for index, row in enumerate(rows):
        id = row.get(column, "").strip()
        if not id:
            raise InputError(f"{rows.where(index)}: column {column!r} is empty; expected an id")
        if id in found:
            raise InputError(
                f"{rows.where(index)}: id {id!r} stands at {rows.where(found[id])} too; expected "
                "one row per id"
            )
        found[id] = index
    return tuple(found)


def _features(
    party: VerticalPartyConfig, rows: Rows, label: str, taken: set[str | None]
) -> list[str]:
    if not party.features:
        columns = [name for name in rows.names if name not in taken]
        if not columns:
            raise InputError(
                f"party.{party.name}.table: {rows.path} has no column beside id and label; "
                "expected at least one feature"
            )
        return columns
    for name in party.features:
        if name == label:
            raise InputError(
                f"party.{party.name}.features: {name!r} is the label column of the active party; "
                "expected other columns"
            )
        if name not in rows.names:
            raise InputError(
                f"party.{party.name}.features: {rows.path} has no column {name!r}; expected some "
                f"of {listed(rows.names)}"
            )
    return list(party.features)


def _check_image(party: VerticalPartyConfig, rows: Rows, kinds: dict[str, str]) -> None:
    shape = party.model.shape
    assert shape is not None
    size = shape[0] * shape[1] * shape[2]
    if size != len(kinds):
        raise InputError(
            f"party.{party.name}.model.shape: {list(shape)} is {size} pixels, {rows.path} has "
            f"{len(kinds)} features; expected as many"
        )
    for column, kind in kinds.items():
        if kind != "number":
            raise InputError(
                f'party.{party.name}.model.kind: "cnn" reads numbers, column {column!r} of '
                f'{rows.path} holds texts; expected features = [...] or kind = "mlp"'
            )
