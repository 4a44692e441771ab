"""The sections that hold several vertical runs against each other."""

from __future__ import annotations

from collections.abc import Sequence

from python_api.report import charts
from python_api.report.charts import Line
from python_api.report.classes import active_party, recalls
from python_api.report.courses import points_of, round_panel
from python_api.report.formats import percent, plain_number, points, short_percent
from python_api.report.numbers import headline
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.words import algorithm_title

__all__ = ["vertical_comparison"]

_METRICS = (
    ("harmonic_mean", "harmonic mean"),
    ("seen_accuracy", "seen"),
    ("unseen_accuracy", "unseen"),
    ("accuracy", "accuracy"),
    ("auc", "AUC"),
    ("loss", "loss, nats"),
)


def vertical_comparison(runs: Sequence[RunData]) -> list[Section | None]:
    """Balanced accuracy by run, its course over the rounds, and every class's recall."""
    return [_headlines(runs), _courses(runs), _recalls(runs)]


def _headlines(runs: Sequence[RunData]) -> Section:
    heads = [headline(run, active_party(run)) for run in runs]
    rest = [
        (metric, title)
        for metric, title in _METRICS
        if any(headline(run, active_party(run), metric=metric).last is not None for run in runs)
    ]
    first = heads[0].last
    rows = []
    for number, (run, head) in enumerate(zip(runs, heads, strict=True)):
        gap = None if first is None or head.last is None else head.last - first
        others = [(m, headline(run, active_party(run), metric=m).last) for m, _ in rest]
        rows.append(
            (
                run.name,
                algorithm_title(run),
                percent(head.before),
                percent(head.last),
                *((points(gap) if number else "–",) if len(runs) > 1 else ()),
                *(
                    plain_number(value) if metric in ("auc", "loss") else percent(value)
                    for metric, value in others
                ),
            )
        )
    table = Table(
        caption="The prediction that counts, on the test ids: balanced accuracy before training "
        "and in the last row that counts, then further metrics of the same model",
        columns=(
            "run",
            "algorithm",
            "before",
            "balanced accuracy",
            *((f"minus {runs[0].name}",) if len(runs) > 1 else ()),
            *(title for _, title in rest),
        ),
        rows=tuple(rows),
        left=(0, 1),
    )
    measured = any(head.before is not None or head.last is not None for head in heads)
    return Section(
        "balanced",
        "Balanced accuracy by run",
        texts=() if measured else ("None of these runs has measured a balanced accuracy yet.",),
        tables=(table,),
    )


def _courses(runs: Sequence[RunData]) -> Section | None:
    lines = [
        Line(run.name, course, style)
        for style, run in enumerate(runs)
        if (course := points_of(run, active_party(run), "balanced_accuracy"))
    ]
    if not lines:
        return None
    chart = round_panel(lines, title="Balanced accuracy on the test ids")
    legend = tuple(
        (charts.key_swatch(line.style), f"{line.label}: {algorithm_title(runs[line.style])}")
        for line in lines
    )
    return Section(
        "balanced-course",
        "Balanced accuracy over rounds, run by run",
        figures=(Panels(charts=(("Balanced accuracy on the test ids", chart),), legend=legend),),
        notes=("Round 0 is before training.",),
    )


def _recalls(runs: Sequence[RunData]) -> Section | None:
    """Which classes a run wins and loses: balanced accuracy class by class."""
    found = {run.name: recall for run in runs if (recall := recalls(run)) is not None}
    if len(found) < 2:
        return None
    last = {
        name: dict(zip(recall.classes, recall.values[:, -1].tolist(), strict=True))
        for name, recall in found.items()
    }
    classes = tuple(dict.fromkeys(label for recall in found.values() for label in recall.classes))
    table = Table(
        caption="Recall on the test ids in the last row that counts",
        columns=("class", *last),
        rows=tuple(
            (label, *(_share(values.get(label)) for values in last.values())) for label in classes
        ),
    )
    return Section("recall", "Recall by class and run", tables=(table,))


def _share(value: float | None) -> str:
    return "–" if value is None or value != value else short_percent(value)
