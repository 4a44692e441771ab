"""Charts of classes: several values a class as marks on one scale, and shares of a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from python_api.report.charts import nice_ticks
from python_api.report.svg import marker, rule, short, svg, write

__all__ = ["mark_rows", "share_bars"]

_WIDTH = 340.0


def mark_rows(
    rows: Sequence[tuple[str, Mapping[int, float]]],
    *,
    title: str,
    text: Callable[[float], str],
    high: float,
) -> Markup:
    """One line per class from 0 to `high`; ``{style: value}`` are its marks, joined by a rule."""
    names = [short(name) for name, _ in rows]
    left, right, top = 10.0 + 6.2 * max(map(len, names)), 20.0, 6.0
    tall = _row_height(len(rows))
    ticks = nice_ticks(0.0, high)
    scale = (_WIDTH - left - right) / ticks[-1]
    bottom = top + tall * len(rows)
    body = []
    for tick in ticks:
        x = left + tick * scale
        body += [rule(x, top, x, bottom), write(x, bottom + 15, text(tick), anchor="middle")]
    every = max(1, math.ceil(10.5 / tall))
    for number, (_, values) in enumerate(rows):
        y = top + tall * (number + 0.5)
        if number % every == 0:
            body.append(write(left - 6, y + 3.5, names[number], anchor="end"))
        places = [left + min(max(value, 0.0), ticks[-1]) * scale for value in values.values()]
        if len(places) > 1:
            body.append(rule(min(places), y, max(places), y, css="join"))
        # the first style is drawn last: it is the one that a reader looks for
        for style, x in reversed(list(zip(values, places, strict=True))):
            body.append(marker(x, y, style, size=min(3.6, 0.4 * tall)))
    return svg(_WIDTH, bottom + 22, title, body)


def share_bars(rows: Sequence[tuple[str, int, int]], *, title: str) -> Markup:
    """One bar per class as long as its rows, filled as far as they were kept.

    rows: (name, kept, all) per class.
    """
    names = [short(name) for name, _, _ in rows]
    told = [f"{kept:,} of {total:,}" for _, kept, total in rows]
    left, right, top = 10.0 + 6.2 * max(map(len, names)), 14.0 + 6.2 * max(map(len, told)), 4.0
    tall = _row_height(len(rows))
    scale = (_WIDTH - left - right) / max(1, *(total for _, _, total in rows))
    every = max(1, math.ceil(10.5 / tall))
    body = []
    for number, (_, kept, total) in enumerate(rows):
        y = top + tall * number
        for css, count in (("bar ground", total), ("bar f0", kept)):
            body.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>'
                ).format(left, y + 0.15 * tall, count * scale, 0.7 * tall, css)
            )
        if number % every == 0:
            middle = y + tall / 2 + 3.5
            body.append(write(left - 6, middle, names[number], anchor="end"))
            body.append(write(left + total * scale + 6, middle, told[number]))
    return svg(_WIDTH, top + tall * len(rows) + 6, title, body)


def _row_height(count: int) -> float:
    return max(6.5, min(20.0, 300.0 / max(1, count)))
