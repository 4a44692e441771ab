"""The figures of a vertical run as PNG files: the same pictures as on its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from python_api.report.canvas import COLOURS, new_figure, plain
from python_api.report.classes import (
    active_party,
    class_names,
    gates,
    planes,
    priors,
    recalls,
    selection_courses,
    selections,
)
from python_api.report.courses import points_of
from python_api.report.reading import RunData
from python_api.report.selected import shown_round
from python_api.report.svg import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["vertical_figures"]

_MARKS = ("o", "s", "^", "D", "v", "P")
_LABELS = 30  # names of classes along an axis, at most

Course = Sequence[tuple[float, float]]


def vertical_figures(run: RunData) -> Iterator[tuple[str, Figure | None]]:
    """`(file name, figure)`, None for a figure without data."""
    active = active_party(run)
    both = {
        split: points_of(run, active, "balanced_accuracy", split=split)
        for split in ("test", "validation")
    }
    yield "balanced_accuracy.png", _courses(both, "balanced accuracy")
    for name, metric, label in (
        ("alone.png", "local_balanced_accuracy", "balanced accuracy alone"),
        ("gate.png", "gate", "mean gate weight"),
    ):
        yield name, _courses({p: points_of(run, p, metric) for p in run.parties}, label)
    yield "recall.png", _recall(run)
    yield "gate_by_class.png", _gates(run)
    yield "priors.png", _priors(run)
    yield "selected.png", _selected(run)
    yield "prototypes.png", _planes(run)


def _courses(courses: Mapping[str, Course], label: str) -> Figure | None:
    courses = {name: course for name, course in courses.items() if course}
    if not courses:
        return None
    figure, (axis,) = new_figure(1, width=5.0, height=3.2)
    for number, (name, course) in enumerate(courses.items()):
        axis.plot(
            *zip(*course, strict=True),
            "-" if number % 2 == 0 else "--",
            color=COLOURS[number % len(COLOURS)],
            marker=_MARKS[number % len(_MARKS)] if len(course) <= 25 else None,
            label=plain(name),
        )
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("round")
    axis.set_ylabel(label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // _LABELS)
    axis.set_yticks(
        range(0, len(names), step), [plain(short(name)) for name in names[::step]], fontsize=8
    )


def _recall(run: RunData) -> Figure | None:
    found = recalls(run)
    if found is None:
        return None
    figure, (axis,) = new_figure(1, width=6.0, height=4.0)
    image = axis.imshow(found.values, vmin=0.0, vmax=1.0, cmap="cividis", aspect="auto")
    step = -(-len(found.rounds) // 12)
    axis.set_xticks(range(0, len(found.rounds), step), [str(at) for at in found.rounds[::step]])
    _name_rows(axis, found.classes)
    axis.set_xlabel("round")
    axis.set_ylabel("class")
    figure.colorbar(image, ax=axis, label="recall on the test ids")
    return figure


def _gates(run: RunData) -> Figure | None:
    found = gates(run)
    if not found:
        return None
    figure, (axis,) = new_figure(1, width=1.6 + 0.9 * len(found), height=4.0)
    matrix = np.stack(list(found.values()), axis=1)
    image = axis.imshow(matrix, vmin=0.0, vmax=1.0, cmap="cividis", aspect="auto")
    axis.set_xticks(range(len(found)), [plain(short(party)) for party in found])
    _name_rows(axis, class_names(run))
    axis.set_ylabel("true class")
    figure.colorbar(image, ax=axis, label="mean gate weight")
    return figure


def _priors(run: RunData) -> Figure | None:
    found, names = priors(run), class_names(run)
    if not found:
        return None
    figure, axes = new_figure(len(found), height=4.0)
    for axis, (party, prior) in zip(axes, found.items(), strict=True):
        for number, kind in enumerate(("estimated", "mixed", "true")):
            values = getattr(prior, kind)
            if values is not None:
                axis.plot(
                    values,
                    np.arange(len(names)),
                    _MARKS[number],
                    color=COLOURS[number],
                    mfc="none" if kind == "mixed" else None,
                    label=kind,
                )
        _name_rows(axis, names)
        axis.invert_yaxis()
        axis.set_xlim(left=0.0)
        axis.set_title(plain(party), fontsize=10)
        axis.set_xlabel("class prior")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return figure


def _selected(run: RunData) -> Figure | None:
    names = class_names(run)
    panels = []
    for key, by in (("selected", "predicted"), ("selected_true", "true")):
        courses = selection_courses(run, key)
        for party, last in selections(run, key).items():
            counts, title = last, f"{party}, by {by} class"
            if party in courses:
                at = shown_round(len(courses[party]))
                counts, title = courses[party][at - 1], f"{title}, round {at}"
            if counts[:, 1].any():
                panels.append((title, counts))
    if not panels:
        return None
    figure, axes = new_figure(len(panels), height=4.0)
    for axis, (title, counts) in zip(axes, panels, strict=True):
        places = np.arange(len(names))
        axis.barh(places, counts[:, 1], color="#d0d7de", label="rows")
        axis.barh(places, counts[:, 0], color=COLOURS[0], label="kept")
        _name_rows(axis, names)
        axis.invert_yaxis()
        axis.set_title(plain(title), fontsize=10)
        axis.set_xlabel("own rows")
    axes[0].legend(fontsize=8)
    return figure


def _planes(run: RunData) -> Figure | None:
    found, names = planes(run), class_names(run)
    if not found:
        return None
    figure, axes = new_figure(len(found), width=4.0, height=3.8)
    for axis, (party, plane) in zip(axes, found.items(), strict=True):
        for label, name in enumerate(names):
            rows, mark = plane.rows[plane.labels == label], plane.prototypes[label]
            colour = COLOURS[label % len(COLOURS)]
            face = "none" if label // len(COLOURS) % 2 else colour
            axis.scatter(*rows.T, s=9, edgecolors=colour, facecolors=face, lw=0.8)
            if np.isfinite(mark).all():
                axis.scatter(*mark, s=60, marker="D", color=colour, edgecolors="white")
                axis.annotate(
                    plain(short(name)),
                    mark,
                    xytext=(6, -3),
                    textcoords="offset points",
                    color=colour,
                    fontsize=9,
                    fontweight="bold",
                )
        axis.set_title(plain(party), fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure
