"""Matrices as charts: heat maps, and the grid of a shared middle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from python_api.report.svg import short, svg, write

__all__ = ["class_map", "coverage_grid", "heat_map", "shade"]


_WIDTH = 340.0  # of a chart with named rows, as wide as the charts that stand beside it


def heat_map(matrix: NDArray[np.float64], *, title: str, x_label: str, y_label: str) -> Markup:
    """A matrix as shaded cells; the shade is ``|value| / max |value|``, negative cells are hatched
    in the second colour. Values are written into the cells where they fit."""
    n_rows, n_columns = matrix.shape
    cell = max(4.0, min(30.0, 250.0 / max(n_rows, n_columns)))
    left, top = 40.0, 8.0
    width, height = left + cell * n_columns + 8, top + cell * n_rows + 36
    finite = np.where(np.isfinite(matrix), matrix, 0.0)
    body = _cells(finite, left, top, cell, cell, float(np.abs(finite).max()), _two_digits)
    every_row = max(1, math.ceil(12 / cell))
    for row in range(0, n_rows, every_row):
        body.append(write(left - 5, top + cell * (row + 0.5) + 3.5, str(row + 1), anchor="end"))
    every_column = max(1, math.ceil(16 / cell))
    for column in range(0, n_columns, every_column):
        x = left + cell * (column + 0.5)
        body.append(write(x, top + cell * n_rows + 13, str(column + 1), anchor="middle"))
    body.append(write(left + cell * n_columns / 2, height - 6, x_label, anchor="middle"))
    body.append(_upright(top + cell * n_rows / 2, y_label))
    # At least 190 units wide, so that a narrow matrix is not blown up on the page.
    return svg(max(width, 190.0), height, title, body, css="map")


def class_map(
    matrix: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    text: Callable[[float], str],
) -> Markup:
    """A matrix of shares with named rows and columns; full shade is 1, a NaN leaves its cell bare.

    Values are written where cells are wide enough, names as densely as they can be read.
    """
    n_rows, n_columns = matrix.shape
    tall = max(5.0, min(24.0, 280.0 / n_rows))
    names = [short(name) for name in rows]
    left, top = 28.0 + 6.2 * max(map(len, names)), 8.0
    wide = max(2.0, min(62.0, (_WIDTH - 8.0 - left) / n_columns))
    body = [
        Markup('<rect x="{:.1f}" y="{:g}" width="{:.1f}" height="{:.1f}" class="ground"/>').format(
            left, top, wide * n_columns, tall * n_rows
        ),
        *_cells(matrix, left, top, wide, tall, 1.0, text),
    ]
    for row in range(0, n_rows, max(1, math.ceil(10.5 / tall))):
        body.append(write(left - 5, top + tall * (row + 0.5) + 3.5, names[row], anchor="end"))
    longest = max(len(short(name, 10)) for name in columns)
    for column in range(0, n_columns, max(1, math.ceil((6.4 * longest + 4) / wide))):
        x = left + wide * (column + 0.5)
        label = short(columns[column], 10)
        body.append(write(x, top + tall * n_rows + 13, label, anchor="middle"))
    height = top + tall * n_rows + 34
    body.append(write(left + wide * n_columns / 2, height - 5, x_label, anchor="middle"))
    body.append(_upright(top + tall * n_rows / 2, y_label))
    return svg(max(left + wide * n_columns + 8, _WIDTH), height, title, body)


def _cells(
    matrix: NDArray[np.float64],
    left: float,
    top: float,
    wide: float,
    tall: float,
    full: float,
    text: Callable[[float], str],
) -> list[Markup]:
    """One rectangle per finite value, and the value where it fits."""
    body = []
    gap = 1.0 if wide >= 4 else 0.0  # very narrow cells join to bands
    for (row, column), value in np.ndenumerate(matrix):
        if not math.isfinite(value):
            continue
        shade = min(1.0, abs(value) / (full or 1.0))
        x, y = left + wide * column, top + tall * row
        body.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" '
                'fill-opacity="{:.2f}"/>'
            ).format(
                x,
                y,
                wide - gap,
                tall - 1,
                "heat" if value >= 0 else "heat negative",
                shade,
            )
        )
        if wide >= 24 and tall >= 12:
            css = "cell over" if shade > 0.78 else "cell mid" if shade > 0.5 else "cell"
            body.append(
                write(x + wide / 2, y + tall / 2 + 3, text(value), anchor="middle", css=css)
            )
    return body


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _upright(middle: float, label: str) -> Markup:
    return Markup(
        '<text transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(middle, label)


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
    return svg(size, size, title, body, css="grid-map")


def shade(n: int, parties: int) -> float:
    """The opacity of an entry that `n` of `parties` use: 0.3 for one, 1 for all."""
    if n <= 0:
        return 0.0
    return 1.0 if parties <= 1 else 0.3 + 0.7 * (n - 1) / (parties - 1)
