"""Inline SVG charts. Colours are CSS custom properties, so a chart follows light and dark.

No colour stands alone: lines also differ in dash and marker, and every chart has a text
alternative. All text passes through `Markup.format`, which escapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

__all__ = [
    "STYLES",
    "Line",
    "bar_panel",
    "change_panel",
    "coverage_grid",
    "heat_map",
    "key_swatch",
    "line_panel",
    "nice_ticks",
    "shade",
]

STYLES = 6  # how many line styles the style sheet defines; more lines repeat them
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2 1 2")


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, ``(x, y)`` points and the number of its style."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int = 0


def nice_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that cover ``[low, high]``.

    >>> nice_ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> nice_ticks(0.0, 7.0)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if not high > low:
        high = low + 1.0
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _svg(
    width: float, height: float, title: str, body: Sequence[Markup], *, css: str = ""
) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {w:g} {h:g}" role="img" class="chart {css}">'
        "<title>{title}</title>{body}</svg>"
    ).format(w=width, h=height, css=css, title=title, body=Markup("").join(body))


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> Markup:
    return Markup(
        '<text x="{x:.1f}" y="{y:.1f}" text-anchor="{a}" class="{css}">{t}</text>'
    ).format(x=x, y=y, a=anchor, css=css, t=text)


def _rule(x1: float, y1: float, x2: float, y2: float, *, css: str = "grid") -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )


def _marker(x: float, y: float, style: int, *, size: float = 3.2) -> Markup:
    css = f"mark s{style % STYLES}"
    if style % 3 == 0:
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" class="{}"/>').format(
            x, y, size, css
        )
    if style % 3 == 1:
        return Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{s:g}" height="{s:g}" class="{c} hollow"/>'
        ).format(x - size, y - size, s=2 * size, c=css)
    return Markup('<path d="M{:.1f} {:.1f}l{s:g} {t:g}h-{u:g}z" class="{c}"/>').format(
        x, y - 1.3 * size, s=1.2 * size, t=2.2 * size, u=2.4 * size, c=css
    )


def _path(points: Sequence[tuple[float, float]], style: int) -> Markup:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path d="{}" class="line s{}" stroke-dasharray="{}"/>').format(
        d, style % STYLES, _DASHES[style % STYLES]
    )


def key_swatch(style: int) -> Markup:
    """The sample of a line style that stands in a legend."""
    body = [_path([(1, 6), (29, 6)], style), _marker(15, 6, style)]
    return Markup('<svg viewBox="0 0 30 12" class="swatch" aria-hidden="true">{}</svg>').format(
        Markup("").join(body)
    )


def line_panel(
    lines: Sequence[Line],
    *,
    title: str,
    y_range: tuple[float, float],
    y_text: Callable[[float], str],
    tick_text: Callable[[float], str] | None = None,
    x_label: str = "round",
) -> Markup:
    """A line chart of 320 by 200 units; the last value of every line is written out.

    y_text writes these values, tick_text those of the axis (default: the same).
    """
    width, height, left, right, top, bottom = 320.0, 200.0, 44.0, 52.0, 12.0, 34.0
    ticks = nice_ticks(*y_range)
    low, high = ticks[0], ticks[-1]
    xs = [x for line in lines for x, _ in line.points]
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    span = (x_high - x_low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / span * (width - left - right),
            height - bottom - (y - low) / (high - low) * (height - top - bottom),
        )

    body = []
    for tick in ticks:
        _, y = at(x_low, tick)
        body += [
            _rule(left, y, width - right, y),
            _text(left - 6, y + 3.5, (tick_text or y_text)(tick), anchor="end"),
        ]
    for tick in _whole_ticks(x_low, x_high):
        x, _ = at(tick, low)
        body.append(_text(x, height - bottom + 15, f"{tick:g}", anchor="middle"))
    body.append(_text((left + width - right) / 2, height - 4, x_label, anchor="middle"))
    ends: list[tuple[float, float, str, int]] = []
    for line in lines:
        if not line.points:
            continue
        places = [at(x, y) for x, y in line.points]
        body.append(_path(places, line.style))
        shown = places if len(places) <= 25 else places[-1:]
        body += [_marker(x, y, line.style) for x, y in shown]
        ends.append((*places[-1], y_text(line.points[-1][1]), line.style))
    body += _end_labels(ends, width - right + 7, top, height - bottom)
    return _svg(width, height, title, body)


def _end_labels(
    ends: Sequence[tuple[float, float, str, int]], x: float, top: float, bottom: float
) -> list[Markup]:
    """Labels beside the last points, pushed apart so that none covers another."""
    gap = 12.0
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _, _ in ordered:
        places.append(max(y + 3.5, places[-1] + gap if places else top))
    limit = bottom + 3.5
    for number in range(len(places) - 1, -1, -1):
        places[number] = min(places[number], limit)
        limit = places[number] - gap
    return [
        _text(x, y, text, css=f"value t{style % STYLES}")
        for y, (_, _, text, style) in zip(places, ordered, strict=True)
    ]


def _whole_ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 6))
    for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000):
        if nice >= step:
            step = nice
            break
    first = math.ceil(low / step) * step
    return list(range(first, math.floor(high) + 1, step))


def change_panel(
    rows: Sequence[tuple[str, float | None, float | None]],
    *,
    title: str,
    text: Callable[[float], str],
) -> Markup:
    """One row per party: its value before (hollow) and last (filled) on a scale from 0 to 1."""
    width, left, right, row_height, top = 360.0, 12.0, 12.0, 44.0, 6.0
    height = top + row_height * len(rows) + 24
    scale = width - left - right
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * scale
        anchor = "start" if tick == 0 else "end" if tick == 1 else "middle"
        body += [
            _rule(x, top, x, height - 20),
            _text(x, height - 6, f"{100 * tick:g} %", anchor=anchor),
        ]
    for number, (label, before, last) in enumerate(rows):
        y = top + row_height * number + 30
        body.append(_text(left, y - 14, label, css="strong halo"))
        change = " → ".join(text(value) for value in (before, last) if value is not None)
        body.append(_text(width - right, y - 14, change, anchor="end", css="halo"))
        if before is not None and last is not None:
            body.append(_rule(left + before * scale, y, left + last * scale, y, css="change"))
        if before is not None:
            body.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="mark s5 hollow"/>').format(
                    left + before * scale, y
                )
            )
        if last is not None:
            body.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" class="mark s0"/>').format(
                    left + last * scale, y
                )
            )
    return _svg(width, height, title, body, css="wide")


def bar_panel(
    groups: Sequence[tuple[str, Sequence[float]]],
    *,
    title: str,
    y_text: Callable[[float], str],
) -> Markup:
    """Grouped bars of 360 by 200 units: one group per round, one bar per style."""
    width, height, left, right, top, bottom = 360.0, 200.0, 56.0, 8.0, 12.0, 34.0
    ticks = nice_ticks(0.0, max((v for _, values in groups for v in values), default=1.0) or 1.0)
    high = ticks[-1]
    step = (width - left - right) / max(1, len(groups))
    every = max(1, math.ceil(len(groups) / 8))
    body = []
    for tick in ticks:
        y = height - bottom - tick / high * (height - top - bottom)
        body += [
            _rule(left, y, width - right, y),
            _text(left - 6, y + 3.5, y_text(tick), anchor="end"),
        ]
    for number, (label, values) in enumerate(groups):
        bar = step * 0.7 / max(1, len(values))
        for position, value in enumerate(values):
            tall = value / high * (height - top - bottom)
            body.append(
                Markup(
                    '<rect x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" class="bar f{}"/>'
                ).format(
                    left + step * (number + 0.15) + bar * position,
                    height - bottom - tall,
                    max(bar - 1, 0.5),
                    tall,
                    position,
                )
            )
        if number % every == 0:
            x = left + step * (number + 0.5)
            body.append(_text(x, height - bottom + 15, label, anchor="middle"))
    body.append(_text((left + width - right) / 2, height - 4, "round", anchor="middle"))
    return _svg(width, height, title, body, css="wide")


def heat_map(matrix: NDArray[np.float64], *, title: str, x_label: str, y_label: str) -> Markup:
    """A matrix as shaded cells; the shade is ``|value| / max |value|``, negative cells are hatched
    in the second colour. Values are written into the cells where they fit."""
    n_rows, n_columns = matrix.shape
    cell = max(4.0, min(30.0, 250.0 / max(n_rows, n_columns)))
    left, top = 40.0, 8.0
    width, height = left + cell * n_columns + 8, top + cell * n_rows + 36
    finite = np.where(np.isfinite(matrix), matrix, 0.0)
    largest = float(np.abs(finite).max()) or 1.0
    body = []
    for row in range(n_rows):
        for column in range(n_columns):
            value = float(finite[row, column])
            shade = abs(value) / largest
            x, y = left + cell * column, top + cell * row
            body.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" '
                    'fill-opacity="{:.2f}"/>'
                ).format(
                    x,
                    y,
                    cell - 1,
                    cell - 1,
                    "heat" if value >= 0 else "heat negative",
                    shade,
                )
            )
            if cell >= 24:
                css = "cell over" if shade > 0.78 else "cell mid" if shade > 0.5 else "cell"
                body.append(
                    _text(
                        x + cell / 2,
                        y + cell / 2 + 3,
                        f"{value:.2f}",
                        anchor="middle",
                        css=css,
                    )
                )
    every_row = max(1, math.ceil(n_rows * 12 / (cell * n_rows)))
    for row in range(0, n_rows, every_row):
        body.append(_text(left - 5, top + cell * (row + 0.5) + 3.5, str(row + 1), anchor="end"))
    every_column = max(1, math.ceil(16 / cell))
    for column in range(0, n_columns, every_column):
        x = left + cell * (column + 0.5)
        body.append(_text(x, top + cell * n_rows + 13, str(column + 1), anchor="middle"))
    body.append(_text(left + cell * n_columns / 2, height - 6, x_label, anchor="middle"))
    middle = top + cell * n_rows / 2
    body.append(
        Markup(
            '<text transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(middle, y_label)
    )
    # At least 190 units wide, so that a narrow matrix is not blown up on the page.
    return _svg(max(width, 190.0), height, title, body, css="map")


def coverage_grid(users: NDArray[np.int64], *, parties: int, title: str) -> Markup:
    """The ``R x R`` middle as a grid; an entry's shade says how many of `parties` use it.

    One path per shade keeps a grid of 64 x 64 below 60 kB.
    """
    size = int(users.shape[0])
    body = [Markup('<rect width="{s}" height="{s}" class="ground"/>').format(s=size)]
    for n in range(1, int(users.max(initial=0)) + 1):
        cells = "".join(
            f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(users == n).tolist()
        )
        if cells:
            body.append(
                Markup('<path d="{}" class="heat" fill-opacity="{:.2f}"/>').format(
                    cells, shade(n, parties)
                )
            )
    return _svg(size, size, title, body, css="grid-map")


def shade(n: int, parties: int) -> float:
    """The opacity of an entry that `n` of `parties` use: 0.3 for one, 1 for all."""
    if n <= 0:
        return 0.0
    return 1.0 if parties <= 1 else 0.3 + 0.7 * (n - 1) / (parties - 1)
