"""Tables on the screen: what `check` found, what a run came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from python_api.check import CheckReport, model_name
from python_api.check_vertical import VerticalReport, encoder_name

__all__ = ["show_check", "show_summary", "show_table", "size_text"]


def show_check(report: CheckReport | VerticalReport, *, title: str) -> None:
    """A row per party."""
    if isinstance(report, VerticalReport):
        _vertical_check(report, title)
        return
    rows = []
    for party in report.parties:
        made = party.estimate
        rows.append(
            [
                party.name,
                party.model,
                f"{made.parameters / 1e6:.2f} M",
                str(party.rank),
                f"{made.layers} x {' '.join(made.slots)}",
                "/".join(map(str, party.rows)),
                f"{100 * party.cut:.1f} %",
                size_text(party.bytes_down),
                size_text(party.bytes_up),
                size_text(made.peak_bytes),
                f"{party.minutes:.1f}",
            ]
        )
    names = "party|model|weights|rank|layers x slots|train/val/test|cut|down|up|memory|minutes"
    show_table(names.split("|"), rows, title=title)


def _vertical_check(report: VerticalReport, title: str) -> None:
    rows = [
        [
            party.name,
            "active" if party.active else "passive",
            "yes" if party.labels else "no",
            party.columns,
            party.encoder,
            f"{party.weights / 1e3:.1f} k",
            "/".join(map(str, party.rows)),
            str(party.own),
            size_text(party.bytes_down),
            size_text(party.bytes_up),
            f"{party.minutes:.1f}",
        ]
        for party in report.parties
    ]
    names = "party|role|labels|columns|encoder|weights|train/val/test|not aligned|down|up|minutes"
    show_table(names.split("|"), rows, title=title)
    print(f"classes: {' '.join(report.labels)}")
    print(report.ids)


def show_summary(done: Any) -> None:
    """A row per party of a run: what it is, accuracy before and after, bytes."""
    sent: dict[str, int] = {}
    for row in done.traffic:
        sent[row["party"]] = sent.get(row["party"], 0) + row["bytes"]
    first = _first_and_last(done.metrics, "accuracy")[0]
    if done.config.setting == "vertical":
        _vertical_summary(done, first, sent)
        return
    last = done.headline()
    rows = [
        [
            party.name,
            model_name(party),
            str(party.rank),
            party.task.data or party.task.kind,
            _number(first.get(party.name)),
            _number(last.get(party.name)),
            size_text(sent.get(party.name, 0)),
        ]
        for party in done.config.parties
    ]
    names = ["party", "model", "rank", "task", "before", "accuracy", "sent"]
    show_table(names, rows, title=f"{done.config.algorithm}: test accuracy")


def _vertical_summary(done: Any, first: dict[str, float], sent: dict[str, int]) -> None:
    """The prediction of all parties together stands with the active one."""
    last = done.headline()
    balanced = _first_and_last(done.metrics, "balanced_accuracy")[1]
    alone = _first_and_last(done.metrics, "local_accuracy")[1]
    rows = [
        [
            party.name,
            "active" if party.active else "passive",
            encoder_name(party),
            _number(first.get(party.name)),
            _number(last.get(party.name)),
            _number(balanced.get(party.name)),
            _number(alone.get(party.name)),
            size_text(sent.get(party.name, 0)),
        ]
        for party in done.config.parties
    ]
    names = ["party", "role", "encoder", "before", "accuracy", "balanced", "alone", "sent"]
    show_table(names, rows, title=f"{done.config.algorithm}: test accuracy, all parties together")


def _first_and_last(
    metrics: Sequence[dict[str, Any]], metric: str
) -> tuple[dict[str, float], dict[str, float]]:
    """A metric's first and last value on the test split, by party."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for row in metrics:
        if (row["metric"], row["split"]) == (metric, "test"):
            first.setdefault(row["party"], row["value"])
            last[row["party"]] = row["value"]
    return first, last


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def size_text(count: float) -> str:
    """A count of bytes for people.

    >>> size_text(999), size_text(123456)
    ('999 B', '123.5 kB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def show_table(names: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table; a pipe or a log has no width of its own, and tables are not cut there."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*names, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(table)
