"""Figures of matplotlib on its Agg canvas: no display, no global state of pyplot is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "images", "new_figure", "plain"]

COLOURS = ("#0b62a8", "#b45309", "#0f6e53", "#8e3a80", "#665d00", "#444c56")


def new_figure(
    columns: int, *, height: float = 2.6, width: float = 3.2
) -> tuple[Figure, list[Any]]:
    """A figure with `columns` axes, at most four in a row, each of the size given in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(columns, 4)
    down = -(-columns // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for axis in axes[columns:]:
        axis.set_axis_off()
    return figure, axes[:columns]


def plain(text: str) -> str:
    """Party names may hold a dollar sign, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def images(
    images: Sequence[tuple[str, np.ndarray]],
    *,
    x_label: str,
    y_label: str,
    bar: str,
    top: float | None = None,
) -> Figure | None:
    if not images:
        return None
    figure, axes = new_figure(len(images))
    low = min(0.0, *(float(np.nanmin(matrix)) for _, matrix in images))
    high = top or max(float(np.nanmax(matrix)) for _, matrix in images)
    for axis, (title, matrix) in zip(axes, images, strict=True):
        image = axis.imshow(matrix, vmin=low, vmax=high or 1.0, cmap="cividis", aspect="auto")
        axis.set_title(plain(title), fontsize=10)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
    figure.colorbar(image, ax=axes, label=bar)
    return figure
