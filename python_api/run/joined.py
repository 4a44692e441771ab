"""Tables of several parties that are predicted together: read, named, held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.config import RunConfig
    from python_api.data.loaders import Rows
    from python_api.data.vertical import Columns
    from python_api.run.result import Run

__all__ = ["check_columns", "parse_with", "read_joined", "unmatched"]


def parse_with(given: Sequence[str]) -> dict[str, str]:
    """`PARTY=FILE` texts as `{party: file}`.

    Errors: `InputError` for a text of another form, or a party that stands twice.

    >>> parse_with(["host=host.csv"])
    {'host': 'host.csv'}
    """
    files: dict[str, str] = {}
    for text in given:
        party, equals, file = text.partition("=")
        if not (party and equals and file):
            raise InputError(f"--with {text}: expected PARTY=FILE")
        if party in files:
            raise InputError(f"--with {text}: {party} has a file already ({files[party]})")
        files[party] = file
    return files


def read_joined(
    run: Run, party: str, file: str, others: Mapping[str, str]
) -> tuple[Rows, dict[str, Rows]]:
    """The party's rows and those of the others, each with its id column, as training reads them.

    Errors: `InputError` for a name that is no other party with a model in the run, a file without
    the id column, and whatever is wrong with a file itself.
    """
    from python_api.data.vertical.tables import read_table

    ids = {own.name: own.id for own in run.config.vertical_parties if own.name in run.parties}
    for name in others:
        if name not in ids or name == party:
            known = " ".join(own for own in ids if own != party)
            hint = f"expected some of {known}" if known else f"expected {party}'s file alone"
            what = f"is {party} itself" if name == party else "has no model in this run"
            raise InputError(f"--with {name}=...: {name} {what}; {hint}")
    tables = {}
    for name, source in ({party: file} | dict(others)).items():
        rows = read_table(source)
        if ids[name] not in rows.names:
            raise _missing(source, f"id column {ids[name]!r} of {name}", rows)
        tables[name] = rows
    return tables.pop(party), tables


def check_columns(columns: Mapping[str, Columns], tables: Mapping[str, Rows]) -> None:
    """`InputError` for a file without a column that its party's encoder reads."""
    for name, rows in tables.items():
        for source in columns[name].sources:
            if source not in rows.names:
                raise _missing(str(rows.path), f"column {source!r} of {name}", rows)


def _missing(source: str, what: str, rows: Rows) -> InputError:
    found = ", ".join(rows.names[:8]) + (", ..." if len(rows.names) > 8 else "")
    return InputError(f"{source}: no {what}; found {found}")


def unmatched(config: RunConfig, party: str, rows: Rows, others: Mapping[str, Rows]) -> list[str]:
    """A line per file that has no id of `rows`: its party is predicted without."""
    column = {own.name: own.id for own in config.vertical_parties}
    ids = [str(row.get(column[party], "")).strip() for row in rows]
    lines = []
    for name, table in others.items():
        theirs = [str(row.get(column[name], "")).strip() for row in table]
        if set(ids).isdisjoint(theirs):
            lines.append(
                f"{table.path}: none of its ids ({theirs[0]!r}, ...) is in {rows.path} "
                f"({ids[0]!r}, ...); {name} counts as absent"
            )
    return lines
