"""The same figures as PNG files, for slides and papers; matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from python_api.report.canvas import images, new_figure, plain
from python_api.report.numbers import (
    BEFORE,
    coverage,
    relations,
    series,
    traffic_per_round,
)
from python_api.report.reading import RunData
from python_api.report.vertical_figures import vertical_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figures"]

_COLOURS = {"local": "#0b62a8", "global": "#b45309"}
_MARKERS = {"local": "o", "global": "s"}
_DASHES = {"local": "-", "global": "--"}


def write_figures(run: RunData, folder: Path) -> tuple[Path, ...]:
    """Writes the figures of the page that have data, and removes those that no longer have any."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    own = vertical_figures(run) if run.vertical else _tuning(run)
    for name, figure in (*own, ("loss.png", _lines(run, "loss")), ("traffic.png", _traffic(run))):
        path = folder / name
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        figure.savefig(path, dpi=110)
        written.append(path)
    return tuple(written)


def _tuning(run: RunData) -> Iterator[tuple[str, Figure | None]]:
    yield "accuracy.png", _lines(run, "accuracy")
    yield "relation.png", _relation(run)
    yield "selection.png", _selection(run)


def _lines(run: RunData, metric: str) -> Figure | None:
    found = {party: series(run, party, metric) for party in run.parties}
    found = {party: phases for party, phases in found.items() if phases}
    if not found:
        return None
    figure, axes = new_figure(len(found))
    for axis, (party, phases) in zip(axes, found.items(), strict=True):
        for phase, points in phases.items():
            if phase == BEFORE:
                continue
            start = phases.get(BEFORE, [])
            x, y = zip(*(start + points), strict=True)
            axis.plot(
                x,
                y,
                _DASHES.get(phase, ":"),
                color=_COLOURS.get(phase, "#444c56"),
                marker=_MARKERS.get(phase, "^") if len(x) <= 25 else None,
                label=phase,
            )
        if set(phases) == {BEFORE}:
            axis.plot(*zip(*phases[BEFORE], strict=True), "o", color="#444c56", label="before")
        axis.set_title(plain(party), fontsize=10)
        axis.set_xlabel("round")
        axis.set_ylabel(f"{metric}, test")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if metric == "accuracy":
            axis.set_ylim(-0.02, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def _traffic(run: RunData) -> Figure | None:
    rounds = traffic_per_round(run)
    if not rounds:
        return None
    figure, (axis,) = new_figure(1, width=5.0)
    x = np.arange(len(rounds))
    for offset, direction, colour in (
        (-0.2, "down", "#0b62a8"),
        (0.2, "up", "#b45309"),
    ):
        heights = [entry[direction] / 1000 for entry in rounds.values()]
        axis.bar(x + offset, heights, 0.38, color=colour, label=direction)
    step = max(1, len(rounds) // 12)
    axis.set_xticks(x[::step], [str(at) for at in rounds][::step])
    axis.set_xlabel("round")
    axis.set_ylabel("payload, kB")
    axis.legend(fontsize=8)
    return figure


def _relation(run: RunData) -> Figure | None:
    return images(
        [(party, matrix) for party, matrix in relations(run).items()],
        x_label="party's layer",
        y_label="shared layer",
        bar="P[j, l]",
    )


def _selection(run: RunData) -> Figure | None:
    found = coverage(run)
    return images(
        [(entry.slot, entry.users.astype(float)) for entry in found],
        x_label="column",
        y_label="row",
        bar="parties",
        top=float(max((len(entry.parties) for entry in found), default=1)),
    )
