"""The sections of one run, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from python_api.report import charts
from python_api.report.charts import Line
from python_api.report.courses import alone_section, course_section, recall_section
from python_api.report.exchange import left_section, traffic_section
from python_api.report.formats import percent, plain_number, points, seconds_text, short_percent
from python_api.report.gates import gate_section, prior_section
from python_api.report.middle import basis_section, relation_section, selection_section
from python_api.report.numbers import BEFORE, headline, round_seconds, series
from python_api.report.parts import Panels, Section, Table
from python_api.report.plane import plane_section
from python_api.report.reading import RunData
from python_api.report.selected import selection_section as rows_section
from python_api.report.svg import dot_swatch
from python_api.report.vertical import notes_section, parties_section, result_section

__all__ = ["run_sections"]

SPLITS = ("train", "validation", "test")
FEW = 100  # test rows below which a note says so


def run_sections(run: RunData) -> tuple[Section, ...]:
    """All sections of one run, in the order of the page; those without data are left out."""
    own = _vertical(run) if run.vertical else _tuning(run)
    sections = (*own, traffic_section(run), left_section(run), _times(run), _config(run))
    return tuple(section for section in sections if section is not None)


def _vertical(run: RunData) -> Sequence[Section | None]:
    """Parties that hold other columns of the same rows."""
    return (
        parties_section(run),
        result_section(run),
        course_section(run),
        recall_section(run),
        alone_section(run),
        gate_section(run),
        prior_section(run),
        rows_section(run),
        plane_section(run),
        notes_section(run),
    )


def _tuning(run: RunData) -> Sequence[Section | None]:
    """Parties that hold a model and a task each."""
    return (
        _parties(run),
        _result(run),
        _over_rounds(run, "accuracy"),
        _over_rounds(run, "loss"),
        basis_section(run),
        relation_section(run),
        selection_section(run),
    )


def _parties(run: RunData) -> Section | None:
    rows = []
    for party in run.configured_parties:
        model, task, train = (_table(party, key) for key in ("model", "task", "train"))
        rate = train.get("lr", party.get("lr", _table(run.config, "train").get("lr")))
        rows.append(
            (
                str(party.get("name", "?")),
                _model_text(model if model else party.get("model")),
                str(party.get("rank", "–")),
                _modules_text(party.get("modules", "all")),
                _task_text(task),
                f"{rate:g}" if isinstance(rate, int | float) else "–",
                _rows_text(run, str(party.get("name", "?"))),
            )
        )
    if not rows:
        return None
    table = Table(
        caption="The parties as configured. Rank is the LoRA rank, lr the learning rate of AdamW; "
        "rows are those of the train, validation and test split.",
        columns=("party", "model", "rank", "modules", "task", "lr", "rows"),
        rows=tuple(rows),
        left=(0, 1, 3, 4),
    )
    return Section("ran", "What ran", tables=(table,), notes=_few_rows(run))


def _rows_text(run: RunData, party: str) -> str:
    counts = _table(_table(run.environment, "rows"), party)
    return " / ".join(str(counts.get(part, "–")) for part in SPLITS) if counts else "–"


def _few_rows(run: RunData) -> tuple[str, ...]:
    """A line where accuracy is measured on so few rows that one of them shows."""
    limit = _table(run.config, "eval").get("limit")
    few = []
    for party in run.parties:
        count = _table(_table(run.environment, "rows"), party).get("test")
        if not isinstance(count, int):
            continue
        if isinstance(limit, int) and limit:
            count = min(count, limit)
        if count < FEW:
            worth = f", one is {100 / count:.1f} points" if count else ""
            few.append(f"{party} ({count}{worth})")
    if not few:
        return ()
    return (
        f"Measured on fewer than {FEW} test rows: {', '.join(few)}. Differences of a few rows are "
        "chance; take accuracies of such a split as rough.",
    )


def _table(parent: object, key: str) -> Mapping[str, object]:
    value = parent.get(key) if isinstance(parent, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _model_text(model: object) -> str:
    if not isinstance(model, Mapping):
        return str(model) if model else "–"
    if model.get("path"):
        return str(model["path"]).rstrip("/").rsplit("/", 1)[-1]
    text = str(model.get("kind", "?"))
    if model.get("hidden_size") and model.get("layers"):
        text += f", {model['layers']} layers of width {model['hidden_size']}"
    return text


def _modules_text(modules: object) -> str:
    return " ".join(map(str, modules)) if isinstance(modules, list) else str(modules)


def _task_text(task: Mapping[str, object]) -> str:
    data = task.get("data") or str(task.get("train", "")).rsplit("/", 1)[-1]
    kind = task.get("kind")
    return ", ".join(str(part) for part in (kind, data) if part) or "–"


def _result(run: RunData) -> Section:
    heads = [headline(run, party) for party in run.parties]
    heads = [head for head in heads if head.before is not None or head.last is not None]
    if not heads:
        return Section(
            "result",
            "Accuracy before and after",
            texts=("metrics.jsonl holds no accuracy on a test split yet.",),
        )
    others = [
        (metric, label)
        for metric, label in (
            ("balanced_accuracy", "balanced accuracy"),
            ("macro_f1", "macro F1"),
            ("auc", "AUC"),
            ("loss", "loss, nats"),
        )
        if any(headline(run, head.party, metric=metric).last is not None for head in heads)
    ]
    rows = []
    for head in heads:
        rest = [headline(run, head.party, metric=metric).last for metric, _ in others]
        rows.append(
            (
                head.party,
                percent(head.before),
                percent(head.last),
                points(head.gain),
                f"{head.last_round}, {head.phase}" if head.last_round is not None else "–",
                *(
                    plain_number(value) if metric in ("loss", "auc") else percent(value)
                    for (metric, _), value in zip(others, rest, strict=True)
                ),
            )
        )
    table = Table(
        caption="Accuracy on each party's own test split, before training and in the last row that "
        "counts (the model the party would keep); further metrics of that same model.",
        columns=(
            "party",
            "before",
            "last",
            "change",
            "round, phase",
            *(label for _, label in others),
        ),
        rows=tuple(rows),
        left=(0, 4),
    )
    chart = charts.change_panel(
        [(head.party, head.before, head.last) for head in heads],
        title="Test accuracy before and last: "
        + "; ".join(
            f"{head.party} {percent(head.before)} to {percent(head.last)}" for head in heads
        ),
        text=percent,
    )
    legend = (
        (dot_swatch("s5 hollow"), "before training"),
        (dot_swatch("s0"), "last"),
    )
    return Section(
        "result",
        "Accuracy before and after",
        figures=(Panels(charts=(("Test accuracy", chart),), legend=legend),),
        tables=(table,),
    )


_PHASES = {"local": "after local training", "global": "with what was downloaded"}


def _over_rounds(run: RunData, metric: str) -> Section | None:
    """One panel per party, one line per phase; all panels share the scale."""
    found = {party: series(run, party, metric) for party in run.parties}
    found = {party: phases for party, phases in found.items() if phases}
    phases = _phases(found.values())
    if not phases:
        return None
    accuracy = metric == "accuracy"
    text: Callable[[float], str] = short_percent if accuracy else (lambda value: f"{value:.2f}")
    values = [
        value for entry in found.values() for points_ in entry.values() for _, value in points_
    ]
    scale = (max(0.0, min(values) - 0.05), 1.0) if accuracy else (0.0, max(values) * 1.02)
    panels = []
    for party, entry in found.items():
        lines = [
            Line(phase, entry.get(BEFORE, []) + entry[phase], style)
            for phase, style in phases.items()
            if phase in entry
        ] or [Line(BEFORE, entry[BEFORE], 5)]
        said = "; ".join(
            f"{line.label} from {text(line.points[0][1])} to {text(line.points[-1][1])}"
            for line in lines
        )
        chart = charts.line_panel(
            lines,
            title=f"{party}: test {metric} by round, {said}",
            y_range=scale,
            tick_text=None if accuracy else (lambda value: f"{value:g}"),
            y_text=text,
        )
        panels.append((party, chart))
    columns = [
        (party, phase) for party in found for phase in (BEFORE, *phases) if phase in found[party]
    ]
    rounds = sorted({at for party, phase in columns for at, _ in found[party][phase]})
    lookup = {(party, phase): dict(found[party][phase]) for party, phase in columns}
    rows = tuple(
        (
            str(at),
            *(_cell(lookup[column].get(at), accuracy=accuracy) for column in columns),
        )
        for at in rounds
    )
    table = Table(
        caption=f"Test {metric} by round" + ("" if accuracy else ", nats"),
        columns=("round", *(f"{party}, {phase}" for party, phase in columns)),
        rows=rows,
    )
    legend = tuple(
        (
            charts.key_swatch(style),
            f"{phase}: {_PHASES[phase]}" if phase in _PHASES else phase,
        )
        for phase, style in phases.items()
    )
    unit = (
        "share of test items that are right" if accuracy else "mean loss on the test split, in nats"
    )
    return Section(
        metric,
        "Accuracy over rounds" if accuracy else "Loss over rounds",
        figures=(Panels(charts=tuple(panels), legend=legend),),
        notes=(f"Vertical: {unit}. Round 0 is before training.",),
        more=(("The numbers behind this figure", table),),
    )


def _phases(found: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Line styles: local is 0 and global 1 everywhere on the page."""
    names = dict.fromkeys(phase for entry in found for phase in entry)
    order: list[str] = [phase for phase in ("local", "global") if phase in names]
    order += [phase for phase in names if phase not in ("local", "global", BEFORE)]
    known = {"local": 0, "global": 1}
    styles: dict[str, int] = {}
    for phase in order:
        styles[phase] = known.get(phase, 2 + len(styles) % (charts.STYLES - 2))
    if not styles and BEFORE in names:
        return {BEFORE: 5}
    return styles


def _cell(value: float | None, *, accuracy: bool) -> str:
    return percent(value) if accuracy else plain_number(value)


def _times(run: RunData) -> Section | None:
    found = round_seconds(run)
    total = run.status.get("seconds")
    texts = []
    if isinstance(total, int | float) and not isinstance(total, bool):
        texts.append(
            f"The run took {seconds_text(float(total))} on this machine: reading the data, "
            "building the models, all rounds and their evaluations; writing this page is not in it."
        )
    if not found and not texts:
        return None
    rows = []
    earlier = 0.0
    for at, seconds in found.items():
        name = "0 (before)" if at == 0 else str(at)
        rows.append((name, seconds_text(seconds - earlier), seconds_text(seconds)))
        earlier = seconds
    table = Table(
        caption="Time by round, all parties one after another, evaluation included. Round 0 is "
        "what stands before training: reading the data, building the models and the first "
        "evaluation.",
        columns=("round", "took", "since the start"),
        rows=tuple(rows),
    )
    return Section(
        "times",
        "Times",
        texts=tuple(texts),
        more=(("Time by round", table),) if rows else (),
    )


def _config(run: RunData) -> Section:
    # The manifest and the sizes in its shapes stand in the section on what left a party, the rows
    # in that on what ran.
    shown = {k: v for k, v in run.environment.items() if k not in ("manifest", "sizes", "rows")}
    rows = tuple(_flat(shown))
    more: list[tuple[str, Table | str]] = [("config.toml, as resolved", run.config_text)]
    if rows:
        more.append(
            (
                "Environment",
                Table(
                    caption="environment.json: where this ran",
                    columns=("what", "value"),
                    rows=rows,
                    left=(0, 1),
                    wrap=True,
                ),
            )
        )
    return Section("config", "Configuration and environment", more=tuple(more))


def _flat(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping):
            rows += _flat(entry, f"{name}.")
        elif isinstance(entry, list):
            rows.append((name, ", ".join(map(str, entry)) or "none"))
        else:
            rows.append((name, str(entry)))
    return rows
