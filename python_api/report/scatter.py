"""A plane of points in classes: a path per class, so that hundreds of points stay a few kB."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from python_api.report.svg import STYLES, short, svg

__all__ = ["point_swatch", "scatter"]

# A class is a colour and, past six classes, another form of point.
_FORMS = ("dot", "ring", "cross")


def scatter(
    rows: NDArray[np.float64],
    labels: NDArray[np.int64],
    marks: NDArray[np.float64],
    names: Sequence[str],
    *,
    title: str,
) -> Markup:
    """Points ``(n, 2)`` in the colour and form of their class; `marks` ``(C, 2)`` are the classes'
    prototypes: diamonds, with the class's name beside them if `names` are given. A label of -1 is
    drawn as no class, a mark that is not finite is left out."""
    width, height, edge = 320.0, 290.0, 16.0
    every = np.concatenate([rows, marks[np.isfinite(marks).all(axis=1)]])
    low, high = every.min(axis=0), every.max(axis=0)
    span = np.where(high > low, high - low, 1.0)

    def at(points: NDArray[np.float64]) -> list[tuple[float, float]]:
        unit = (points - low) / span
        return [
            (edge + float(x) * (width - 2 * edge), height - edge - float(y) * (height - 2 * edge))
            for x, y in unit
        ]

    body = [
        Markup('<rect x="1" y="1" width="{:g}" height="{:g}" class="frame"/>').format(
            width - 2, height - 2
        )
    ]
    for label in sorted(set(labels.tolist())):
        places = at(rows[labels == label])
        body.append(_points(places, label) if label >= 0 else _unlabelled(places))
    known = [all(map(math.isfinite, mark)) for mark in marks.tolist()]
    for label, place in enumerate(at(np.nan_to_num(marks))):
        if known[label]:
            body += _prototype(*place, label, short(names[label], 12) if names else "", width)
    return svg(width, height, title, body)


def _points(places: Sequence[tuple[float, float]], label: int) -> Markup:
    form = _FORMS[label // STYLES % len(_FORMS)]
    if form == "cross":
        d = "".join(f"M{x - 2.6:.1f} {y:.1f}h5.2m-2.6-2.6v5.2" for x, y in places)
    elif form == "ring":
        d = "".join(
            f"M{x - 2.4:.1f} {y:.1f}a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0" for x, y in places
        )
    else:  # a line of no length with round ends is a dot
        d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
    return Markup('<path d="{}" class="point {} s{}"/>').format(d, form, label % STYLES)


def _unlabelled(places: Sequence[tuple[float, float]]) -> Markup:
    d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
    return Markup('<path d="{}" class="point dot none"/>').format(d)


def _prototype(x: float, y: float, label: int, name: str, width: float) -> list[Markup]:
    beside = x < width - 20 - 6.6 * len(name)
    return [
        Markup('<path d="M{:.1f} {:.1f}l6.5 6.5-6.5 6.5-6.5-6.5z" class="proto s{}"/>').format(
            x, y - 6.5, label % STYLES
        ),
        Markup(
            '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="strong halo t{}">{}</text>'
        ).format(
            x + 9 if beside else x - 9, y + 4, "start" if beside else "end", label % STYLES, name
        ),
    ]


def point_swatch(label: int) -> Markup:
    """The sample of a class's points that stands in a legend."""
    body = _points([(6, 6), (15, 6), (24, 6)], label)
    return Markup('<svg viewBox="0 0 30 12" class="swatch" aria-hidden="true">{}</svg>').format(
        body
    )
