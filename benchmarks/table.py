"""Tables from rows: in a terminal, and the Markdown that README and docs hold.

    python -m fedkernels_benchmarks.table results/*.jsonl                   # prints Markdown
    python -m fedkernels_benchmarks.table results/*.jsonl --write README.md # between its markers
    python -m fedkernels_benchmarks.table results/*.jsonl --check README.md # 1 if it is not current

The markers are `<!-- benchmarks:FAMILY -->` and `<!-- /benchmarks:FAMILY -->`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .registry import ENTRIES, SAVED, Entry, Goal
from .run import Row, read_rows

__all__ = [
    "Comparison",
    "Mean",
    "compare",
    "geometric_mean",
    "latest",
    "markdown_table",
    "means",
    "print_table",
]

_ENTRY = {entry.name: entry for entry in ENTRIES}
_DIRECTION = {"fwd": "forward", "fwd_bwd": "fwd + bwd", SAVED: "kept for backward"}


@dataclass(frozen=True)
class Outcome:
    """One goal, and what came of it."""

    goal: Goal
    ratio: float | None

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio >= self.goal.ratio

    def __str__(self) -> str:
        word = "met" if self.met else "missed"
        if self.goal.peer.same_work:
            got = "no figure" if self.ratio is None else f"{self.ratio:.3f}x"
            return f"{got} {self.goal.peer.name}, goal {self.goal.ratio:.2f}x: {word}"
        got = "no figure" if self.ratio is None else f"{100 * (1 / self.ratio - 1):.1f} %"
        limit = 100 * (1 / self.goal.ratio - 1)
        return f"{got} over {self.goal.peer.name}, goal {limit:.0f} %: {word}"


@dataclass(frozen=True)
class Comparison:
    """The rows of one case, direction and dtype that were measured in turns."""

    entry: Entry
    ours: Row
    peers: dict[str, Row]
    outcomes: tuple[Outcome, ...]

    @property
    def strongest(self) -> str | None:
        """The fastest peer that computes the same thing."""
        rivals = {peer.name for peer in self.entry.peers if peer.same_work}
        timed = {
            name: row.median_us
            for name, row in self.peers.items()
            if name in rivals and row.median_us is not None
        }
        return min(timed, key=timed.__getitem__) if timed else None

    @property
    def ratio(self) -> float | None:
        """time(strongest peer) / time(ours)."""
        return None if self.strongest is None else _ratio(self.ours, self.peers[self.strongest])

    @property
    def lost(self) -> bool:
        return self.ratio is not None and self.ratio < 1

    @property
    def verdict(self) -> str:
        if not self.ours.passed:
            return "FAILED"
        parts = ["LOST"] if self.lost else []
        parts += [str(outcome) for outcome in self.outcomes]
        return "; ".join(parts)


@dataclass(frozen=True)
class Mean:
    """Geometric mean of time(peer) / time(ours) over an entry's cases."""

    entry: Entry
    direction: str
    dtype: str
    peer: str
    ratio: float
    cases: int
    outcomes: tuple[Outcome, ...]


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; ValueError for no values.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    values = list(values)
    if not values:
        raise ValueError("geometric_mean: no values")
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of each case's runs on a machine, the last one: contenders of one run stay together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.device, row.threads, row.entry, row.case, row.direction, row.dtype)
        held = groups.setdefault(key, [])
        if held and row.date > held[0].date:
            held.clear()
        if not held or row.date == held[0].date:
            held.append(row)
    return [row for held in groups.values() for row in held]


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """Rows grouped by entry, case, direction and dtype, in the order of the registry."""
    groups: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.entry in _ENTRY:  # a row of an entry that was renamed stays in the file
            key = (row.entry, row.dtype, row.direction, row.case)
            groups.setdefault(key, {})[row.contender] = row
    found = []
    for (name, dtype, direction, case), held in groups.items():
        if "ours" not in held:
            continue
        entry, ours = _ENTRY[name], held.pop("ours")
        outcomes = tuple(
            Outcome(goal, _ratio(ours, held.get(goal.peer.name)))
            for goal in entry.goals
            if not goal.mean and goal.covers(case, direction, dtype)
        )
        found.append(Comparison(entry, ours, held, outcomes))

    def place(item: Comparison) -> tuple[int, ...]:
        names = [case.name for case in (*item.entry.cases, *item.entry.quick)]
        return (
            ENTRIES.index(item.entry),
            item.entry.dtypes.index(item.ours.dtype),
            item.entry.directions.index(item.ours.direction),
            names.index(item.ours.case) if item.ours.case in names else len(names),
        )

    return sorted(found, key=place)


def means(comparisons: Sequence[Comparison]) -> list[Mean]:
    """Per entry, direction, dtype and peer, over the cases in which both have a time."""
    ratios: dict[tuple[str, str, str, str], list[float]] = {}
    for item in comparisons:
        for name, row in item.peers.items():
            ratio = _ratio(item.ours, row)
            if ratio is not None:
                key = (item.entry.name, item.ours.direction, item.ours.dtype, name)
                ratios.setdefault(key, []).append(ratio)
    found = []
    for (name, direction, dtype, peer), values in ratios.items():
        entry, mean = _ENTRY[name], geometric_mean(values)
        outcomes = tuple(
            Outcome(goal, mean)
            for goal in entry.goals
            if goal.mean and goal.peer.name == peer and goal.covers("", direction, dtype)
        )
        found.append(Mean(entry, direction, dtype, peer, mean, len(values), outcomes))
    return found


def _ratio(ours: Row, peer: Row | None) -> float | None:
    if peer is None or not peer.median_us or not ours.median_us:
        return None
    return peer.median_us / ours.median_us


def _figure(row: Row | None) -> str:
    if row is None:
        return ""
    if not row.passed:
        return row.gate.split(":")[0]
    if row.direction == SAVED:
        return "" if row.peak_mb is None else f"{round(row.peak_mb * 1e6):,} B"
    if row.median_us is None:
        return ""
    return f"{row.median_us:.1f} us" if row.median_us < 1000 else f"{row.median_us / 1e3:.2f} ms"


def _layout(comparisons: Sequence[Comparison]) -> list[tuple[str, list[str], list[Comparison]]]:
    """(entry's name, its peers that occur, its comparisons)."""
    found = []
    for entry in ENTRIES:
        items = [item for item in comparisons if item.entry is entry]
        if items:
            names = [p.name for p in entry.peers if any(p.name in item.peers for item in items)]
            found.append((entry.name, names, items))
    return found


def _cells(item: Comparison, names: Sequence[str]) -> list[str]:
    against = "" if item.ratio is None else f"{item.ratio:.3f}x {item.strongest}"
    return [
        item.ours.case,
        item.ours.dtype,
        _DIRECTION[item.ours.direction],
        _figure(item.ours),
        *(_figure(item.peers.get(name)) for name in names),
        against,
        item.verdict if item.ours.direction != SAVED else _saved_verdict(item),
    ]


def _saved_verdict(item: Comparison) -> str:
    return "exactly N*r elements: met" if item.ours.passed else "FAILED"


def _provenance(items: Sequence[Comparison]) -> str:
    rows = [row for item in items for row in (item.ours, *item.peers.values())]
    timed = [row.n for row in rows if row.median_us is not None]
    count = f"; medians of {min(timed)} to {max(timed)} rounds in turns" if timed else ""
    peers = dict.fromkeys(r.backend for i in items for r in i.peers.values() if r.backend)
    ours = ", ".join(dict.fromkeys(item.ours.backend for item in items))
    first = rows[0]
    return (
        f"{first.device}, {first.threads} threads, torch {first.torch}, commit "
        f"{first.git or 'unknown'}, {max(row.date for row in rows)[:10]}; ours: backend {ours}; "
        f"against {', '.join(peers) or 'nothing'}{count}."
    )


def _notes(items: Sequence[Comparison]) -> list[str]:
    """Every gate that did not pass, with its reason."""
    notes = []
    for item in items:
        for row in (item.ours, *item.peers.values()):
            if not row.passed:
                place = f"{row.case} {row.dtype}"
                notes.append(f"{row.contender}, {place}: {row.gate}")
    return list(dict.fromkeys(notes))


_HEAD = ("case", "dtype", "direction", "ours")
_TAIL = ("strongest peer", "goals")


def markdown_table(rows: Iterable[Row]) -> str:
    """Markdown of the latest rows: a table per entry, the means, what was lost or failed."""
    comparisons = compare(latest(rows))
    averages = means(comparisons)
    parts = []
    for name, peers, items in _layout(comparisons):
        head = [*_HEAD, *peers, *_TAIL]
        parts.append(f"**{name}**")
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for item in items:
            cells = _cells(item, peers)
            cells[-1] = re.sub(r"\b(LOST|FAILED|missed)\b", r"**\1**", cells[-1])
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
        parts.append("\n".join(_mean_lines(averages, name)))
        parts.append(_provenance(items))
        parts.append("\n".join(f"- {note}" for note in _notes(items)))
    return "\n\n".join(part for part in parts if part)


def _mean_lines(averages: Sequence[Mean], entry: str) -> list[str]:
    lines = []
    for mean in averages:
        if mean.entry.name == entry and mean.cases > 1:
            verdict = "".join(f" ({outcome})" for outcome in mean.outcomes)
            lines.append(
                f"- geometric mean over {mean.cases} cases, {mean.dtype}, "
                f"{_DIRECTION[mean.direction]}: {mean.ratio:.3f}x {mean.peer}{verdict}"
            )
    return lines


def print_table(rows: Iterable[Row], console: Any = None) -> None:
    """The same with rich: cases lost and gates failed in red, and named by a word."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    comparisons = compare(list(rows))
    averages = means(comparisons)
    for name, peers, items in _layout(comparisons):
        table = Table(title=name, title_justify="left", caption=_provenance(items))
        for column in (*_HEAD, *peers, *_TAIL):
            table.add_column(column, justify="left" if column in ("case", "goals") else "right")
        for item in items:
            bad = item.lost or not item.ours.passed or any(not o.met for o in item.outcomes)
            style = "red" if bad else "green" if item.outcomes else None
            cells = [escape(cell) for cell in _cells(item, peers)]
            table.add_row(*cells[:-2], *(f"[{style}]{c}[/]" if style else c for c in cells[-2:]))
        console.print(table)
        for line in _mean_lines(averages, name):
            bad = "missed" in line
            console.print(f"[red]{escape(line)}[/]" if bad else escape(line))
        for note in _notes(items):
            console.print(f"[red]{escape(note)}[/]")
    lost = [f"{i.ours.case} {i.ours.dtype} {i.ours.direction}" for i in comparisons if i.lost]
    if comparisons:
        console.print(f"cases lost: {len(lost)} of {len(comparisons)}" + _listed(lost))


def _listed(names: Sequence[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def _replace(text: str, family: str, table: str, path: Path) -> str:
    start, end = f"<!-- benchmarks:{family} -->", f"<!-- /benchmarks:{family} -->"
    if start not in text or end not in text:
        raise SystemExit(f"{path}: expected the markers {start} and {end}")
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown tables from stored benchmark rows.")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--family", default=ENTRIES[0].family)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = [row for path in options.results for row in read_rows(path)]
    table = markdown_table(row for row in rows if row.family == options.family)
    for path in (options.write, options.check):
        if path is not None:
            text = path.read_text(encoding="utf-8")
            current = _replace(text, options.family, table, path)
            if path == options.check and current != text:
                print(f"{path}: the {options.family} table is not that of the stored rows")
                return 1
            if path == options.write:
                path.write_text(current, encoding="utf-8")
    if options.write is None and options.check is None:
        print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
