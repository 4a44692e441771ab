"""The sections of a vertical run over rounds: the prediction, each party alone, every class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from python_api.report import charts
from python_api.report.charts import Line
from python_api.report.classes import active_party, recalls
from python_api.report.formats import percent, plain_number, short_percent
from python_api.report.grids import class_map
from python_api.report.numbers import series
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData

__all__ = [
    "alone_section",
    "course_section",
    "points_of",
    "recall_section",
    "round_panel",
    "thinned",
]

COLUMNS = 60  # rounds in a heat map; more are thinned at even steps


def thinned(count: int) -> list[int]:
    """At most `COLUMNS` of `count` places, at even steps, the first and the last among them."""
    places = np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int)
    return np.unique(places).tolist()


def _kept(run: RunData) -> tuple[str, ...]:
    train = run.config.get("train")
    if not isinstance(train, Mapping) or train.get("keep") != "best":
        return ()
    return (
        'keep = "best": a row on the test ids is that of the best round so far by validation, '
        "which is why these curves stand still for a while.",
    )


def round_panel(
    lines: Sequence[Line],
    *,
    title: str,
    text: Callable[[float], str] = short_percent,
    top: float | None = 1.0,
) -> Markup:
    """Lines over rounds; `top` None scales to the largest value."""
    values = [value for line in lines for _, value in line.points]
    high = 1.02 * max(values) if top is None else top
    told = "; ".join(
        f"{line.label} from {text(line.points[0][1])} to {text(line.points[-1][1])}"
        for line in lines
    )
    return charts.line_panel(
        lines,
        title=f"{title} by round: {told}",
        y_range=(0.0, high),
        y_text=text,
        tick_text=None if top is not None else (lambda value: f"{value:g}"),
    )


def points_of(
    run: RunData, party: str, metric: str, *, split: str = "test"
) -> list[tuple[float, float]]:
    """All rounds of a metric in one line, whatever their phase."""
    found: dict[int, float] = {}
    for at_value in series(run, party, metric, split=split).values():
        found |= dict(at_value)
    return [(float(at), value) for at, value in sorted(found.items())]


def course_section(run: RunData) -> Section | None:
    party = active_party(run)
    panels: list[tuple[str, Markup]] = []
    rows: dict[str, list[tuple[float, float]]] = {}
    for metric, label, top in (
        ("balanced_accuracy", "Balanced accuracy", 1.0),
        ("loss", "Loss, nats", None),
    ):
        lines = []
        for style, split in enumerate(("test", "validation")):
            if course := points_of(run, party, metric, split=split):
                lines.append(Line(split, course, style))
                rows[f"{label.lower()}, {split}"] = course
        if lines:
            text = short_percent if top is not None else (lambda value: f"{value:.2f}")
            panels.append((label, round_panel(lines, title=label, text=text, top=top)))
    if not panels:
        return None
    names = list(dict.fromkeys(column.rsplit(", ", 1)[1] for column in rows))
    said = {"test": "test ids", "validation": "validation ids, by which the round is chosen"}
    legend = tuple(
        (charts.key_swatch(style), said[split])
        for style, split in enumerate(("test", "validation"))
        if split in names
    )
    return Section(
        "course",
        "Balanced accuracy over rounds",
        figures=(Panels(charts=tuple(panels), legend=legend),),
        notes=("Round 0 is before training.", *_kept(run)),
        more=(("The numbers behind this figure", by_round("The fused prediction by round", rows)),),
    )


def by_round(caption: str, columns: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    """A row per round; columns whose name holds "loss" are numbers, the others shares."""
    rounds = sorted({at for points in columns.values() for at, _ in points})
    lookup = {name: dict(points) for name, points in columns.items()}
    return Table(
        caption=caption,
        columns=("round", *columns),
        rows=tuple(
            (
                f"{at:g}",
                *(
                    (plain_number if "loss" in name else percent)(lookup[name].get(at))
                    for name in columns
                ),
            )
            for at in rounds
        ),
    )


def alone_section(run: RunData) -> Section | None:
    """The decision where one party is present and the others are absent."""
    found = {
        metric: {
            party: course for party in run.parties if (course := points_of(run, party, metric))
        }
        for metric in ("local_balanced_accuracy", "local_accuracy")
    }
    found = {metric: courses for metric, courses in found.items() if courses}
    if not found:
        return None
    titles = {
        "local_balanced_accuracy": "Balanced accuracy alone",
        "local_accuracy": "Accuracy alone",
    }
    styles = {party: style for style, party in enumerate(run.parties)}
    panels = tuple(
        (
            titles[metric],
            round_panel(
                [Line(party, course, styles[party]) for party, course in courses.items()],
                title=titles[metric],
            ),
        )
        for metric, courses in found.items()
    )
    shown = [party for party in run.parties if any(party in courses for courses in found.values())]
    columns = {
        f"{party}, {'balanced' if 'balanced' in metric else 'accuracy'}": course
        for metric, courses in found.items()
        for party, course in courses.items()
    }
    return Section(
        "alone",
        "What each party does alone",
        texts=(
            "The same model's decision for the same test ids where one party is present and the "
            "others are absent: what its columns tell by themselves after this training. It is not "
            "what the party would reach had it trained alone.",
        ),
        figures=(
            Panels(
                charts=panels,
                legend=tuple((charts.key_swatch(styles[party]), party) for party in shown),
            ),
        ),
        more=(("The numbers behind this figure", by_round("Alone, by round", columns)),),
    )


def recall_section(run: RunData) -> Section | None:
    found = recalls(run)
    if found is None:
        return None
    last = found.values[:, -1]
    worst = int(np.nanargmin(last)) if np.isfinite(last).any() else 0
    shown = thinned(len(found.rounds))
    chart = class_map(
        found.values[:, shown],
        found.classes,
        [str(found.rounds[at]) for at in shown],
        title="Recall by class and round; last: "
        + ", ".join(
            f"{name} {short_percent(value)}"
            for name, value in zip(found.classes, last.tolist(), strict=True)
            if np.isfinite(value)
        ),
        x_label="round",
        y_label="class",
        text=short_percent,
    )
    data = run.config.get("data")
    unseen = data.get("unseen") if isinstance(data, Mapping) else None
    texts = ["Of the test rows of each class, the share that was predicted as that class."]
    if np.isfinite(last[worst]):
        texts.append(f"The lowest in the end: {found.classes[worst]}, {percent(last[worst])}.")
    if isinstance(unseen, list) and unseen:
        texts.append(
            f"Taken out of the active party's training rows: {', '.join(map(str, unseen))}."
        )
    table = Table(
        caption="Recall by class on the test ids",
        columns=("class", "before" if found.rounds[0] == 0 else "first", "last"),
        rows=tuple(
            (name, percent(_finite(first)), percent(_finite(end)))
            for name, first, end in zip(
                found.classes, found.values[:, 0].tolist(), last.tolist(), strict=True
            )
        ),
    )
    return Section(
        "recall",
        "Recall by class over rounds",
        texts=(" ".join(texts),),
        figures=(Panels(charts=(("Class by round, full shade is 100 %", chart),)),),
        more=(("Recall by class, before and last", table),),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
