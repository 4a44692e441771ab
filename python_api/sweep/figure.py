"""figure.png: every row's difference from the first row, with its interval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from python_api.sweep.collate import Summary
from python_api.sweep.grid import Grid

__all__ = ["write_figure"]

SEEN, UNSEEN = "#0b62a8", "#6b7480"


def write_figure(path: Path, found: Sequence[Summary], grid: Grid) -> bool:
    """A dot plot of the paired differences; False, and no file, where there are none.

    Filled: the interval lies on one side of 0. Open: no difference seen. Drawn without a display.
    """
    rows = [(row.row, row.difference) for row in found if row.difference is not None]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(len(name) for name, _ in rows)
    size = (5.2 + min(0.075 * longest, 3.5), 1.3 + 0.32 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.axvline(0, color="#1b1f24", linewidth=1, zorder=1)
    for at, (_, difference) in enumerate(rows):
        colour = SEEN if difference.seen else UNSEEN
        face = colour if difference.seen else "white"
        axis.plot([difference.low, difference.high], [at, at], color=colour, linewidth=2, zorder=2)
        axis.plot(difference.mean, at, "o", color=colour, markerfacecolor=face, zorder=3)
    axis.set_yticks(range(len(rows)), [_plain(name) for name, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(f"{_plain(grid.metric)}, {grid.split}: row minus {_plain(grid.rows[0].name)}")
    pairs = sorted({difference.pairs for _, difference in rows})
    told = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    axis.set_title(
        f"paired differences ({told} pairs), 95 % intervals; open: no difference seen", fontsize=9
    )
    beside = path.with_name(f".{path.name}.new")
    figure.savefig(beside, dpi=120, format="png")
    os.replace(beside, path)
    return True


def _plain(text: str) -> str:
    """A name may hold a dollar sign, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
