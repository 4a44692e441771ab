"""Inline SVG charts. Colours are CSS custom properties, so a chart follows light and dark.

No colour stands alone: lines also differ in dash and marker, and every chart has a text
alternative. All text passes through `Markup.format`, which escapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from python_api.report.svg import STYLES, marker, path, rule, svg, write

__all__ = [
    "STYLES",
    "Line",
    "bar_panel",
    "change_panel",
    "key_swatch",
    "line_panel",
    "nice_ticks",
]


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


def key_swatch(style: int) -> Markup:
    """The sample of a line style that stands in a legend."""
    body = [path([(1, 6), (29, 6)], style), marker(15, 6, style)]
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
            rule(left, y, width - right, y),
            write(left - 6, y + 3.5, (tick_text or y_text)(tick), anchor="end"),
        ]
    for tick in _whole_ticks(x_low, x_high):
        x, _ = at(tick, low)
        body.append(write(x, height - bottom + 15, f"{tick:g}", anchor="middle"))
    body.append(write((left + width - right) / 2, height - 4, x_label, anchor="middle"))
    ends: list[tuple[float, float, str, int]] = []
    for line in lines:
        if not line.points:
            continue
        places = [at(x, y) for x, y in line.points]
        body.append(path(places, line.style))
        shown = places if len(places) <= 25 else places[-1:]
        body += [marker(x, y, line.style) for x, y in shown]
        ends.append((*places[-1], y_text(line.points[-1][1]), line.style))
    body += _end_labels(ends, width - right + 7, top, height - bottom)
    return svg(width, height, title, body)


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
        write(x, y, text, css=f"value t{style % STYLES}")
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
            rule(x, top, x, height - 20),
            write(x, height - 6, f"{100 * tick:g} %", anchor=anchor),
        ]
    for number, (label, before, last) in enumerate(rows):
        y = top + row_height * number + 30
        body.append(write(left, y - 14, label, css="strong halo"))
        change = " → ".join(text(value) for value in (before, last) if value is not None)
        body.append(write(width - right, y - 14, change, anchor="end", css="halo"))
        if before is not None and last is not None:
            body.append(rule(left + before * scale, y, left + last * scale, y, css="change"))
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
    return svg(width, height, title, body, css="wide")


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
            rule(left, y, width - right, y),
            write(left - 6, y + 3.5, y_text(tick), anchor="end"),
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
            body.append(write(x, height - bottom + 15, label, anchor="middle"))
    body.append(write((left + width - right) / 2, height - 4, "round", anchor="middle"))
    return svg(width, height, title, body, css="wide")
