"""The sections of a vertical run on who took part and what came out."""

from __future__ import annotations

from collections.abc import Mapping

from python_api.report import charts
from python_api.report.classes import active_party, alone, lines_of, whole_numbers
from python_api.report.formats import percent, plain_number, points
from python_api.report.numbers import headline
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.svg import dot_swatch
from python_api.report.vertical_words import about, fused_name

__all__ = [
    "notes_section",
    "parties_section",
    "result_section",
]

FEW = 100  # test rows below which a note says so
_METRICS = (
    ("balanced_accuracy", "balanced accuracy"),
    ("harmonic_mean", "harmonic mean of seen and unseen"),
    ("seen_accuracy", "accuracy on seen classes"),
    ("unseen_accuracy", "accuracy on unseen classes"),
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("auc", "AUC"),
    ("loss", "loss, nats"),
)
_BARE = ("auc", "loss")  # numbers, not shares
_IDS = (
    ("common", "held by all parties"),
    ("test", "of them set aside for the test"),
    ("validation", "for choosing the round"),
    ("aligned", "aligned in training"),
)


def parties_section(run: RunData) -> Section | None:
    if not run.configured_parties:
        return None
    ids = whole_numbers(run, "ids")
    rows = []
    for party in run.configured_parties:
        name = str(party.get("name", "?"))
        rows.append(
            (
                name,
                "active" if party.get("active") is True else "passive",
                str(party.get("table", "–")).rsplit("/", 1)[-1],
                _columns_text(run, party),
                _encoder_text(party.get("model")),
                _labels_text(run, party),
                _number_text(ids.get(name)),
                _number_text(ids.get(f"{name} own")),
            )
        )
    table = Table(
        caption="The parties as configured. The active party holds the label and makes the "
        "prediction. Columns: numbers that the encoder reads, a text column being several. Rows: "
        "ids in training; own rows: those of them that not every party holds.",
        columns=("party", "role", "table", "columns", "encoder", "labels", "rows", "own rows"),
        rows=tuple(rows),
        left=(0, 1, 2, 4, 5),
    )
    told = ", ".join(f"{ids[key]:,} {what}" for key, what in _IDS if key in ids)
    texts = (*about(run), f"Ids: {told}.") if told else about(run)
    return Section("ran", "What ran", texts=texts, tables=(table,), notes=_few(ids.get("test")))


def _columns_text(run: RunData, party: Mapping[str, object]) -> str:
    """As many numbers as the encoder reads, where the run kept it; else the configured columns."""
    if (read := run.columns.get(str(party.get("name")))) is not None:
        return str(read)
    features = party.get("features")
    return str(len(features)) if isinstance(features, list) and features else "all"


def _encoder_text(model: object) -> str:
    if not isinstance(model, Mapping):
        return "–"
    sizes: list[object] = []
    if isinstance(model.get("shape"), list):
        sizes.append("x".join(map(str, model["shape"])))
    if isinstance(model.get("hidden"), list):
        sizes += model["hidden"]
    sizes.append(model.get("out", "?"))
    return f"{model.get('kind', 'mlp')} {' → '.join(map(str, sizes))}"


def _labels_text(run: RunData, party: Mapping[str, object]) -> str:
    if party.get("label"):
        return f"own ({party['label']})"
    data = run.config.get("data")
    if party.get("active") is True and isinstance(data, Mapping) and data.get("label"):
        return f"yes ({data['label']})"
    return "none"


def _number_text(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _few(count: int | None) -> tuple[str, ...]:
    if count is None or count >= FEW:
        return ()
    worth = f", one is {100 / count:.1f} points of accuracy" if count else ""
    return (
        f"Measured on fewer than {FEW} test rows ({count}{worth}). Differences of a few rows are "
        "chance.",
    )


def notes_section(run: RunData) -> Section | None:
    """What was found in the tables: imputed, dropped, ids that differ."""
    lines = lines_of(run, "notes")
    return Section("notes", "Notes on the tables", points=lines) if lines else None


def result_section(run: RunData) -> Section:
    party = active_party(run)
    found = [(key, title, headline(run, party, metric=key)) for key, title in _METRICS]
    found = [entry for entry in found if entry[2].before is not None or entry[2].last is not None]
    if not found:
        return Section(
            "result",
            "Result",
            texts=("metrics.jsonl holds no balanced accuracy on a test split yet.",),
        )
    rows = []
    for key, title, head in found:
        text = plain_number if key in _BARE else percent
        change = _signed(head.gain) if key in _BARE else points(head.gain)
        rows.append((title, text(head.before), text(head.last), change))
    at = next((head.last_round for _, _, head in found if head.last_round is not None), None)
    table = Table(
        caption=f"The prediction of {fused_name(run)} on the test ids, before training and "
        + (f"in round {at}, the last row that counts" if at is not None else "after it")
        + ". Balanced accuracy is the mean of the classes' recalls: every class counts alike.",
        columns=("metric", "before", "last", "change"),
        rows=tuple(rows),
    )
    bars = [(fused_name(run), headline(run, party))]
    bars += [
        (f"{name} alone", headline(run, name, metric=metric))
        for name, metric in alone(run).items()
        if metric == "local_balanced_accuracy"
    ]
    bars = [bar for bar in bars if bar[1].before is not None or bar[1].last is not None]
    figures: tuple[Panels, ...] = ()
    if bars:
        chart = charts.change_panel(
            [(name, head.before, head.last) for name, head in bars],
            title="Balanced accuracy on the test ids before and last: "
            + "; ".join(f"{n} {percent(h.before)} to {percent(h.last)}" for n, h in bars),
            text=percent,
        )
        legend = ((dot_swatch("s5 hollow"), "before training"), (dot_swatch("s0"), "last"))
        figures = (Panels(charts=(("Balanced accuracy on the test ids", chart),), legend=legend),)
    return Section("result", "Result", figures=figures, tables=(table,))


def _signed(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{'−' if value < 0 else '+'}{abs(value):.3f}"
