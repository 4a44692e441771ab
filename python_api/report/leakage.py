"""The measured part of "not protected": what gradients and prototypes of a vertical run told."""

from __future__ import annotations

from python_api.report.classes import leakage
from python_api.report.formats import percent
from python_api.report.parts import Table
from python_api.report.reading import RunData

__all__ = ["leak_table"]

_COLUMNS = (
    ("gradients", "gradients seen", "count"),
    ("purity", "k-means purity", "share"),
    ("chance", "by chance", "share"),
    ("auc", "label AUC", "number"),
    ("prototype_distance", "prototype to nearest row", "number"),
    ("row_distance", "row to nearest row", "number"),
    ("withheld", "classes withheld", "count"),
)


def leak_table(run: RunData) -> Table | None:
    """A row per party that something was measured for, a column per measure that some party has."""
    found = {party: numbers for party, numbers in leakage(run).items() if numbers}
    if not found:
        return None
    columns = [column for column in _COLUMNS if any(column[0] in n for n in found.values())]
    if not columns:
        return None
    keys = {key for key, _, _ in columns}
    told = []
    if "purity" in keys:
        told.append(
            "k-means purity: the gradients that the party received, put into as many clusters as "
            "there are classes; the share of rows that have their cluster's commonest label. By "
            "chance: the largest class's share, which is what one cluster for all would reach."
        )
    if "auc" in keys:
        told.append("Label AUC: how well the gradients rank the two classes (0.5 is chance).")
    if "prototype_distance" in keys:
        told.append(
            "Distances between representations: from a shared prototype to the nearest training "
            "row, and between a row and its nearest other row. Where the first is no larger than "
            "the second, a prototype is about as telling as a row."
        )
    return Table(
        caption="Measured leakage, from the last round. " + " ".join(told),
        columns=("party", *(title for _, title, _ in columns)),
        rows=tuple(
            (party, *(_cell(numbers.get(key), kind) for key, _, kind in columns))
            for party, numbers in found.items()
        ),
    )


def _cell(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    if kind == "share":
        return percent(value)
    return f"{value:,.0f}" if kind == "count" else f"{value:.3f}"
