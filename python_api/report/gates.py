"""The sections of a vertical run on gates and priors."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from python_api.report import charts
from python_api.report.charts import Line
from python_api.report.classes import class_names, gates, priors
from python_api.report.courses import points_of, round_panel
from python_api.report.formats import short_percent
from python_api.report.grids import class_map
from python_api.report.marks import mark_rows
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.svg import mark_swatch

__all__ = ["gate_section", "of_round", "prior_section"]

_PRIORS = (
    ("true", "true, where it is known", 2),
    ("estimated", "estimated", 0),
    ("mixed", "mixed with the global prior", 1),
)


def of_round(run: RunData) -> str:
    return f"State of round {run.state_round}, from the run's last checkpoint."


def gate_section(run: RunData) -> Section | None:
    found, names = gates(run), class_names(run)
    panels = []
    if found:
        matrix = np.stack(list(found.values()), axis=1)
        chart = class_map(
            matrix,
            names,
            list(found),
            title="Mean gate weight by true class and party: "
            + "; ".join(
                f"{party} {short_percent(float(np.nanmean(column)))}"
                for party, column in found.items()
            )
            + " over the classes",
            x_label="party",
            y_label="true class",
            text=lambda value: f"{value:.2f}",
        )
        panels.append(("Mean weight on test rows, by true class", chart))
    styles = {party: style for style, party in enumerate(run.parties)}
    lines = [
        Line(party, course, styles[party])
        for party in run.parties
        if (course := points_of(run, party, "gate"))
    ]
    legend: tuple[tuple[Markup, str], ...] = ()
    if lines:
        legend = tuple((charts.key_swatch(line.style), line.label) for line in lines)
        panels.append(
            ("Mean weight on test rows, over rounds", round_panel(lines, title="Mean gate weight"))
        )
    steady = [bool(np.ptp(column) < 1e-6) for column in found.values()]
    steady += [len({round(value, 6) for _, value in line.points}) == 1 for line in lines]
    if all(steady):  # nothing to see, or no gate: parties that are present weigh alike
        return None
    table = Table(
        caption="Mean gate weight on test rows by true class",
        columns=("class", *found),
        rows=tuple(
            (name, *(f"{column[at]:.3f}" for column in found.values()))
            for at, name in enumerate(names)
        ),
    )
    return Section(
        "gate",
        "Gate weights",
        texts=(
            "The gate weighs the parties' representations of a row before they are added; the "
            "weights of the parties that are present sum to 1. A party whose columns tell nothing "
            "about a class should weigh little there.",
        ),
        figures=(Panels(charts=tuple(panels), legend=legend),),
        notes=(of_round(run),) if found else (),
        more=(("The numbers behind this figure", table),) if found else (),
    )


def prior_section(run: RunData) -> Section | None:
    found, names = priors(run), class_names(run)
    if not found:
        return None
    values = [
        float(array.max())
        for prior in found.values()
        for array in (prior.estimated, prior.mixed, prior.true)
        if array is not None
    ]
    panels, shown, rows = [], set(), []
    for party, prior in found.items():
        kinds = [
            (kind, style, array)
            for kind, _, style in _PRIORS
            if (array := getattr(prior, kind)) is not None
        ]
        shown |= {kind for kind, _, _ in kinds}
        told = f"{party}: class priors; " + "; ".join(
            f"{name} "
            + ", ".join(f"{kind} {short_percent(float(array[at]))}" for kind, _, array in kinds)
            for at, name in enumerate(names[:10])
        )
        chart = mark_rows(
            [
                (name, {style: float(array[at]) for _, style, array in kinds})
                for at, name in enumerate(names)
            ],
            title=told,
            text=short_percent,
            high=max(values),
        )
        panels.append((party, chart))
        rows.append((party, "–" if prior.off is None else f"{100 * prior.off:.1f} points"))
    text = (
        "How often each class is thought to occur among a party's own rows. The estimate comes "
        "from rows without labels, or from labels where the party has them; the mixed prior joins "
        "it with the prior of all parties and is what training uses."
    )
    table = Table(
        caption="How far the estimate is from the truth, at the class where it is furthest",
        columns=("party", "largest error"),
        rows=tuple(rows),
    )
    return Section(
        "prior",
        "Class priors",
        texts=(text,),
        figures=(
            Panels(
                charts=tuple(panels),
                legend=tuple(
                    (mark_swatch(style), label) for kind, label, style in _PRIORS if kind in shown
                ),
            ),
        ),
        tables=(table,) if any(prior.off is not None for prior in found.values()) else (),
        notes=(of_round(run),),
    )
