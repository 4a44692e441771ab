"""What the template knows how to show: sections of texts, tables and charts."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Panels", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """A captioned table; `left` names the columns of text, `wrap` lets their cells break."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[str, ...] = ()
    left: tuple[int, ...] = (0,)
    wrap: bool = False


@dataclass(frozen=True)
class Panels:
    """Small charts side by side under one legend."""

    charts: tuple[tuple[str, Markup], ...]
    legend: tuple[tuple[Markup, str], ...] = ()
    small: bool = False


@dataclass(frozen=True)
class Section:
    """`more` stands folded away: a label with a table or a preformatted text."""

    key: str
    title: str
    texts: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    figures: tuple[Panels, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    more: tuple[tuple[str, Table | str], ...] = ()
