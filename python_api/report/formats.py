"""How the report writes numbers."""

from __future__ import annotations

__all__ = ["bytes_text", "percent", "plain_number", "points", "seconds_text", "short_percent"]


def percent(value: float | None) -> str:
    """A share as a percentage; a dash where there is none.

    >>> percent(0.9375), percent(None)
    ('93.8 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(0.125), points(-0.02), points(None)
    ('+12.5 points', '−2.0 points', '–')
    """
    if value is None:
        return "–"
    sign = "−" if round(100 * value, 1) < 0 else "+" if round(100 * value, 1) > 0 else "±"
    return f"{sign}{abs(100 * value):.1f} points"


def bytes_text(count: float) -> str:
    """Bytes in the unit that keeps the number short (1 kB = 1000 bytes).

    >>> bytes_text(0), bytes_text(999), bytes_text(28_672), bytes_text(3_500_000)
    ('0 B', '999 B', '28.7 kB', '3.5 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size * 0.99995:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """A duration in words a person reads.

    >>> seconds_text(0.25), seconds_text(42.4), seconds_text(150), seconds_text(7320)
    ('0.2 s', '42 s', '2 min 30 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short_percent(value: float) -> str:
    """A share as a whole percentage, for axes and cells.

    >>> short_percent(0.857)
    '86 %'
    """
    return f"{100 * value:.0f} %"


def plain_number(value: float | None) -> str:
    """Three digits behind the point; a dash where there is no number.

    >>> plain_number(0.12345), plain_number(0.0001), plain_number(None)
    ('0.123', '< 0.001', '–')
    """
    if value is None:
        return "–"
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}"
