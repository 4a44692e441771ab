"""The sections on the shared middle: its basis, the layer relations, the selected entries."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from python_api.report import grids
from python_api.report.numbers import coverage, relations
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.words import basis_title, basis_words

__all__ = ["basis_section", "relation_section", "selection_section"]


def basis_section(run: RunData) -> Section | None:
    texts = basis_words(run)
    return Section("basis", basis_title(run), texts=texts) if texts else None


def relation_section(run: RunData) -> Section | None:
    found = relations(run)
    if not found:
        return None
    panels = tuple(
        (
            f"{party} ({matrix.shape[1]} layers)",
            grids.heat_map(
                matrix,
                title=_relation_title(party, matrix),
                x_label="own layer",
                y_label="shared layer",
            ),
        )
        for party, matrix in found.items()
    )
    return Section(
        "relation",
        "Layer relations",
        texts=(
            "Each matrix says which shared layers a party's own layers draw on: the column of an "
            "own layer holds its weights over the shared layers."
            + (
                " The columns sum to 1."
                if run.table.get("relation", "depth") in ("depth", "last")
                else ""
            )
            + " A darker (in a dark page: brighter) cell is a larger weight.",
        ),
        figures=(Panels(charts=panels),),
        notes=(_of_round(run),),
    )


def _relation_title(party: str, matrix: NDArray[np.float64]) -> str:
    strongest = np.abs(matrix).argmax(axis=0)
    told = [
        f"own layer {own + 1} draws most on shared layer {shared + 1} ({matrix[shared, own]:.2f})"
        for own, shared in enumerate(strongest[:8].tolist())
    ]
    return (
        f"{party}: relation of {matrix.shape[0]} shared layers to {matrix.shape[1]} own layers; "
        + "; ".join(told)
    )


def _of_round(run: RunData) -> str:
    return f"State of round {run.state_round}, from the run's last checkpoint."


def selection_section(run: RunData) -> Section | None:
    found = coverage(run)
    if not found:
        return None
    most = max(len(entry.parties) for entry in found)
    panels = tuple(
        (
            entry.slot,
            grids.coverage_grid(
                entry.users,
                parties=most,
                title=f"{entry.slot}: "
                + ", ".join(
                    f"{100 * entry.share(n):.0f} % of entries used by {n} of {len(entry.parties)}"
                    for n in range(len(entry.parties) + 1)
                ),
            ),
        )
        for entry in found
    )
    legend = tuple(
        (
            Markup('<span class="box"><span style="opacity:{:.2f}"></span></span>').format(
                grids.shade(n, most)
            ),
            "no party" if n == 0 else f"{n} {'party' if n == 1 else 'parties'}",
        )
        for n in range(most + 1)
    )
    size = found[0].users.shape[0]
    block = run.table.get("select", "round") == "block"
    chosen = "the leading block" if block else "those with the highest scores"
    table = Table(
        caption=f"Share of the {size} x {size} entries of each slot's shared middle, by how many "
        "parties use them in at least one layer",
        columns=(
            "slot",
            "parties with this slot",
            *(f"used by {n}" for n in range(most + 1)),
        ),
        rows=tuple(
            (
                entry.slot,
                str(len(entry.parties)),
                *(
                    f"{100 * entry.share(n):.1f} %" if n <= len(entry.parties) else "–"
                    for n in range(most + 1)
                ),
            )
            for entry in found
        ),
    )
    return Section(
        "selection",
        "Selected entries",
        texts=(
            f"Of the {size} x {size} shared middle, each party works with as many entries per "
            f"layer as its own rank squared, {chosen}. One grid per module slot; only entries "
            "that two parties use can carry anything between them.",
        ),
        figures=(Panels(charts=panels, legend=legend, small=True),),
        tables=(table,),
        notes=(_of_round(run),),
    )
