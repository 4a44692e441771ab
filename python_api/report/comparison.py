"""The sections that hold several runs against each other."""

from __future__ import annotations

from collections.abc import Sequence

from python_api.report import charts
from python_api.report.charts import Line
from python_api.report.formats import bytes_text, percent, points, seconds_text
from python_api.report.numbers import BEFORE, Headline, headline, series, traffic_totals
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.vertical_comparison import vertical_comparison
from python_api.report.words import algorithm_title, status_of

__all__ = ["comparison_sections"]


def comparison_sections(runs: Sequence[RunData]) -> tuple[Section, ...]:
    """The headline per party and run, its course over the rounds, and what each run cost.

    Vertical runs and runs of parties with tasks of their own have no metric in common, so each
    kind has tables of its own; what they cost stands in one.
    """
    sections: list[Section | None] = []
    for vertical in (False, True):
        group = [run for run in runs if run.vertical is vertical]
        if vertical and group:
            sections += vertical_comparison(group)
        elif group:
            parties = tuple(dict.fromkeys(party for run in group for party in run.parties))
            sections += [_headlines(group, parties), _courses(group, parties)]
    sections.append(_costs(runs))
    return tuple(section for section in sections if section is not None)


def _headlines(runs: Sequence[RunData], parties: Sequence[str]) -> Section:
    found = {party: [headline(run, party) for run in runs] for party in parties}
    found = {
        party: heads
        for party, heads in found.items()
        if any(head.before is not None or head.last is not None for head in heads)
    }
    # Runs of one seed start from one model, so most often one column of "before" says it all.
    one_start = all(len({head.before for head in heads}) == 1 for heads in found.values())
    rows = []
    for party, heads in found.items():
        row = [party]
        if one_start:
            row.append(percent(heads[0].before))
        for head in heads:
            row += ([] if one_start else [percent(head.before)]) + [percent(head.last)]
        row += [points(_difference(head, heads[0])) for head in heads[1:]]
        rows.append(tuple(row))
    columns = ["party"]
    if one_start:
        columns.append("before")
    for run in runs:
        columns += ([] if one_start else [f"{run.name}, before"]) + [f"{run.name}, last"]
    columns += [f"{run.name} minus {runs[0].name}" for run in runs[1:]]
    table = Table(
        caption="Accuracy on each party's own test split: before training and in the last row that "
        "counts, per run",
        columns=tuple(columns),
        rows=tuple(rows),
    )
    return Section(
        "result",
        "Accuracy by party and run",
        texts=() if rows else ("None of these runs has measured an accuracy yet.",),
        tables=(table,),
    )


def _difference(head: Headline, first: Headline) -> float | None:
    return None if head.last is None or first.last is None else head.last - first.last


def _courses(runs: Sequence[RunData], parties: Sequence[str]) -> Section | None:
    """One panel per party, one line per run: the phase that the run's headline comes from."""
    panels = []
    for party in parties:
        lines = []
        for style, run in enumerate(runs):
            found = series(run, party, "accuracy")
            phase = headline(run, party).phase
            course = found.get(BEFORE, []) + found.get(phase, [])
            if course:
                lines.append(Line(run.name, course, style))
        if not lines:
            continue
        said = "; ".join(f"{line.label} ends at {percent(line.points[-1][1])}" for line in lines)
        chart = charts.line_panel(
            lines,
            title=f"{party}: test accuracy by round, {said}",
            y_range=(0.0, 1.0),
            y_text=lambda value: f"{100 * value:.0f} %",
        )
        panels.append((party, chart))
    if not panels:
        return None
    legend = tuple(
        (charts.key_swatch(style), f"{run.name}: {algorithm_title(run)}")
        for style, run in enumerate(runs)
    )
    return Section(
        "course",
        "Accuracy over rounds, run by run",
        figures=(Panels(charts=tuple(panels), legend=legend),),
        notes=(
            "Each line is the phase that the run's headline comes from; round 0 is before "
            "training.",
        ),
    )


def _costs(runs: Sequence[RunData]) -> Section:
    rows = []
    for run in runs:
        totals = traffic_totals(run, ["direction"])
        seconds = run.status.get("seconds")
        timed = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        rows.append(
            (
                run.name,
                algorithm_title(run),
                status_of(run),
                str(run.rounds) if run.rounds is not None else "–",
                *(
                    bytes_text(totals[(direction,)].payload) if (direction,) in totals else "–"
                    for direction in ("down", "up")
                ),
                seconds_text(float(seconds)) if timed else "–",  # type: ignore[arg-type]
            )
        )
    table = Table(
        caption="Payload over the whole run, all parties together, and time on this machine",
        columns=("run", "algorithm", "status", "rounds", "down", "up", "time"),
        rows=tuple(rows),
        left=(0, 1, 2),
    )
    return Section("cost", "Traffic and time", tables=(table,))
