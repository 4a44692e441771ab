"""The section of a vertical run that shows representations and prototypes in a plane."""

from __future__ import annotations

import numpy as np

from python_api.report.classes import class_names, planes
from python_api.report.gates import of_round
from python_api.report.parts import Panels, Section
from python_api.report.reading import RunData
from python_api.report.scatter import point_swatch, scatter

__all__ = ["plane_section"]

LEGEND = 18  # classes that a colour and a form of point tell apart

_MANY = (
    f"More than {LEGEND} classes: colours and forms repeat and names are left out; what shows is "
    "whether the classes lie apart."
)


def plane_section(run: RunData) -> Section | None:
    found, names = planes(run), class_names(run)
    if not found:
        return None
    marked = run.algorithm == "proto_evfl"  # the baselines have no prototypes
    panels = []
    for party, plane in found.items():
        shown = len(plane.rows)
        some = (
            f"{shown} of {plane.total:,} test rows" if shown < plane.total else f"{shown} test rows"
        )
        known = int(np.isfinite(plane.prototypes).all(axis=1).sum()) if marked else "no"
        chart = scatter(
            plane.rows,
            plane.labels,
            plane.prototypes if marked else np.full_like(plane.prototypes, np.nan),
            names if len(names) <= LEGEND else (),
            title=f"{party}: {some} and {known} class prototypes in two principal directions",
        )
        panels.append((f"{party}: {some}", chart))
    legible = len(names) <= LEGEND
    used = {label for plane in found.values() for label in plane.labels.tolist()}
    return Section(
        "plane",
        "Prototypes in two dimensions" if marked else "Representations in two dimensions",
        texts=(
            "Each party's representations of test rows"
            f"{', and its class prototypes (diamonds)' if marked else ''}, all "
            "scaled to one length, in the two directions in which they vary most. What lies apart "
            "here is apart; what overlaps here may still differ in directions that are not shown.",
        ),
        figures=(
            Panels(
                charts=tuple(panels),
                legend=tuple(
                    (point_swatch(label), names[label])
                    for label in sorted(used)
                    if legible and 0 <= label < len(names)
                ),
            ),
        ),
        notes=(of_round(run),) if legible else (_MANY, of_round(run)),
    )
