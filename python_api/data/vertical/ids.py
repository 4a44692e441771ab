"""Which ids the parties have in common, matched as they are written, and what looks wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from python_api.data.vertical.tables import PartyTable
from python_api.errors import InputError

__all__ = ["common_ids", "id_notes"]


def common_ids(tables: Mapping[str, PartyTable], active: str) -> list[str]:
    """The ids that all parties hold, sorted as texts, so that no table's order matters.

    Raises:
        InputError: a party shares no id with the active one, or most of those that it shares are
            written otherwise there; or no id is held by all.
    """
    own = set(tables[active].ids)
    for name, table in tables.items():
        if name == active:
            continue
        shared = own.intersection(table.ids)
        alike = _alike(tables[active], table)
        if not shared and not alike:
            mine, theirs = tables[active], table
            raise InputError(
                f"party.{name}.id: {theirs.rows.path} and {mine.rows.path} share no id "
                f"({theirs.ids[0]!r}, {mine.ids[0]!r}, ...); expected columns that hold the same "
                "ids"
            )
        if len(alike) > len(shared):
            raise InputError(f"party.{name}.id: {_written(tables[active], table, alike)}")
    common = own.intersection(*(table.ids for table in tables.values()))
    if not common:
        raise InputError(
            f"party: no id is held by all of {', '.join(tables)}; expected some, on which the "
            "parties together can be measured"
        )
    return sorted(common)


def id_notes(tables: Mapping[str, PartyTable], active: str) -> list[str]:
    """Ids that look equal and are not, and tables whose rows stand in another order."""
    notes = []
    for name, table in tables.items():
        same = _doubles(table.ids)
        if same:
            notes.append(
                f"{name}: ids {same[0]!r} and {same[1]!r} look like one and count as two "
                f"({table.where(same[0])}, {table.where(same[1])})"
            )
        if name == active:
            continue
        alike = _alike(tables[active], table)
        if alike:
            notes.append(f"{name}: {_written(tables[active], table, alike)}")
        shared = set(tables[active].ids).intersection(table.ids)
        orders = [[i for i in t.ids if i in shared] for t in (tables[active], table)]
        if orders[0] != orders[1]:
            notes.append(
                f"{name}: its rows stand in another order than those of {active}; rows are "
                "matched by id"
            )
    return notes


def _plain(id: str) -> str:
    """What an id is after a detour through a spreadsheet: `007`, `7.0`, `7` are one.

    >>> _plain("007.0"), _plain("A-7"), _plain("a-7")
    ('7', 'a-7', 'a-7')
    """
    found = re.fullmatch(r"([+-]?)0*(\d+)(\.0*)?", id)
    return f"{found[1].removeprefix('+')}{found[2]}" if found else id.casefold()


def _doubles(ids: Sequence[str]) -> tuple[str, str] | None:
    """The first two ids of one table that look like one."""
    seen: dict[str, str] = {}
    for id in ids:
        first = seen.setdefault(_plain(id), id)
        if first != id:
            return first, id
    return None


def _alike(mine: PartyTable, theirs: PartyTable) -> list[tuple[str, str]]:
    """Pairs of ids that look equal, neither of which has an equal one in the other table."""
    shared = set(mine.ids).intersection(theirs.ids)
    left = {_plain(id): id for id in mine.ids if id not in shared}
    return [
        (left[plain], id) for id in theirs.ids if id not in shared and (plain := _plain(id)) in left
    ]


def _written(mine: PartyTable, theirs: PartyTable, alike: Sequence[tuple[str, str]]) -> str:
    one, other = alike[0]
    count = f"{len(alike)} ids are" if len(alike) > 1 else "one id is"
    return (
        f"{count} written otherwise than those of {mine.name} and not matched: {other!r} at "
        f"{theirs.where(other)}, {one!r} at {mine.where(one)}; expected the same text"
    )
