"""The section of a vertical run on which of the parties' own rows were selected, by class."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from python_api.report.classes import class_names, selection_courses, selections
from python_api.report.courses import thinned
from python_api.report.formats import short_percent
from python_api.report.gates import of_round
from python_api.report.grids import class_map
from python_api.report.marks import share_bars
from python_api.report.parts import Panels, Section
from python_api.report.reading import RunData

__all__ = ["selection_section", "shown_round"]

_BY = (("selected", "predicted"), ("selected_true", "true"))


def shown_round(rounds: int) -> int:
    """The round whose bars are shown, from 1: the middle, since the share grows to all rows."""
    return (rounds + 1) // 2


def selection_section(run: RunData) -> Section | None:
    names = class_names(run)
    figures = []
    for party in run.parties:
        panels: list[tuple[str, Markup]] = []
        for key, by in _BY:
            course = selection_courses(run, key).get(party)
            counts = selections(run, key).get(party)
            at = f"round {run.state_round}"
            if course is not None:
                at = f"round {shown_round(len(course))}"
                counts = course[shown_round(len(course)) - 1]
            if counts is not None and counts[:, 1].any():
                panels.append(_bars(party, by, at, names, counts))
        for key, by in reversed(_BY):  # one of the two: by true class where that is known
            if (course := selection_courses(run, key).get(party)) is not None:
                panels.append(_course(party, by, names, course))
                break
        if panels:
            figures.append(Panels(charts=tuple(panels)))
    if not figures:
        return None
    return Section(
        "selection",
        "Which own rows were selected",
        texts=(
            "Of each party's rows that others lack, those that the lower level learned from: the "
            "ones that conditional transport carries to the prototypes at the lowest cost. The "
            "share that is kept grows over the run, so the middle of it tells more than its end. "
            "True classes are known to the measuring side only, and only where this run made the "
            "split itself.",
        ),
        figures=tuple(figures),
        notes=(
            "Bars: as long as there are rows of the class, filled as far as they were kept. "
            + of_round(run),
        ),
    )


def _bars(
    party: str, by: str, at: str, names: tuple[str, ...], counts: NDArray[np.int64]
) -> tuple[str, Markup]:
    kept, rows = counts.sum(axis=0).tolist()
    bars = [(name, *pair) for name, pair in zip(names, counts.tolist(), strict=True)]
    chart = share_bars(
        bars,
        title=f"{party}, {at}: {kept:,} of {rows:,} own rows kept; by {by} class: "
        + ", ".join(f"{name} {some:,} of {every:,}" for name, some, every in bars),
    )
    return f"{party}, by {by} class, {at}: {kept:,} of {rows:,}", chart


def _course(
    party: str, by: str, names: tuple[str, ...], course: NDArray[np.int64]
) -> tuple[str, Markup]:
    kept, rows = course[..., 0].T, course[..., 1].T
    share = np.where(rows > 0, kept / np.maximum(rows, 1), np.nan)
    at = thinned(len(course))
    chart = class_map(
        share[:, at],
        names,
        [str(round + 1) for round in at],
        title=f"{party}: share of own rows kept by {by} class and round, in all from "
        f"{short_percent(kept[:, 0].sum() / max(1, rows[:, 0].sum()))} to "
        f"{short_percent(kept[:, -1].sum() / max(1, rows[:, -1].sum()))}",
        x_label="round",
        y_label=f"{by} class",
        text=short_percent,
    )
    return f"{party}, share kept by {by} class", chart
