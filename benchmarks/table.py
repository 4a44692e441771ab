"""Tables from rows: in a terminal, and the Markdown that README and docs hold.

    python -m fedkernels_benchmarks.table results/*.jsonl                   # prints Markdown
    python -m fedkernels_benchmarks.table results/*.jsonl --write README.md # between its markers
    python -m fedkernels_benchmarks.table results/*.jsonl --check README.md # 1 if it is not current

The markers are `<!-- benchmarks:FAMILY -->` and `<!-- /benchmarks:FAMILY -->`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .registry import ENTRIES, SAVED, Entry, Goal
from .run import Row, read_rows

__all__ = [
    "Comparison",
    "Section",
    "geometric_mean",
    "latest",
    "markdown_table",
    "print_table",
    "sections",
]

_ENTRY = {entry.name: entry for entry in ENTRIES}
_DIRECTION = {"fwd": "forward", "fwd_bwd": "forward + backward", SAVED: "kept for backward"}
_BAD = ("FAILED", "LOST", "missed")


@dataclass(frozen=True)
class Comparison:
    """The rows of one case, direction and dtype that were measured in turns."""

    entry: Entry
    ours: Row
    peers: dict[str, Row]

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

    def ratio(self, peer: str | None) -> float | None:
        """time(peer) / time(ours), or None if one has no time."""
        row = self.peers.get(peer) if peer is not None else None
        if row is None or not row.median_us or not self.ours.median_us:
            return None
        return row.median_us / self.ours.median_us

    @property
    def lost(self) -> bool:
        ratio = self.ratio(self.strongest)
        return ratio is not None and ratio < 1

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goals that this case alone has to meet."""
        row = self.ours
        return tuple(
            goal
            for goal in self.entry.goals
            if not goal.mean and goal.covers(row.case, row.direction, row.dtype)
        )

    @property
    def verdict(self) -> str:
        """One word: FAILED (gate), LOST (a peer is faster), missed or met (its goals), or none."""
        if not self.ours.passed:
            return "FAILED"
        if self.lost:
            return "LOST"
        if self.ours.direction == SAVED:
            return "met"  # its goal is its gate
        if not self.goals:
            return ""
        reached = [_met(goal, self.ratio(goal.peer.name)) for goal in self.goals]
        return "met" if all(reached) else "missed"


@dataclass(frozen=True)
class Section:
    """One table: an entry in one dtype and direction."""

    entry: Entry
    dtype: str
    direction: str
    items: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        return f"{self.entry.name}: {self.dtype}, {_DIRECTION[self.direction]}"

    @property
    def peers(self) -> list[str]:
        known = [peer.name for peer in self.entry.peers]
        return [name for name in known if any(name in item.peers for item in self.items)]

    def mean(self, peer: str) -> float | None:
        """Geometric mean of time(peer) / time(ours) over the cases in which both have a time."""
        ratios = [ratio for item in self.items if (ratio := item.ratio(peer)) is not None]
        return geometric_mean(ratios) if ratios else None

    @property
    def lines(self) -> list[str]:
        """The means, the goals and what came of them, and every gate that did not pass."""
        return [*self._means(), *self._goals(), *self._notes()]

    def _means(self) -> list[str]:
        parts = []
        for peer in self.peers:
            mean, cases = self.mean(peer), sum(i.ratio(peer) is not None for i in self.items)
            if mean is not None:
                parts.append(f"{mean:.3f}x {peer} ({cases} of {len(self.items)} cases)")
        if len(self.items) < 2 or not parts:
            return []
        return [f"geometric mean: {', '.join(parts)}"]

    def _goals(self) -> list[str]:
        if self.direction == SAVED:
            return ["goal: exactly N * r elements kept for backward (parameters not counted)"]
        lines = []
        for goal in self.entry.goals:
            held = [
                item
                for item in self.items
                if goal.covers(item.ours.case, self.direction, self.dtype)
            ]
            if not held:
                continue
            if goal.mean:
                # A case without a figure is not left out of the mean that is promised.
                blank = sum(item.ratio(goal.peer.name) is None for item in held)
                met = not blank and _met(goal, self.mean(goal.peer.name))
                word = "met" if met else "missed" + (f" ({blank} without a figure)" * bool(blank))
                lines.append(f"goal: {_text(goal)} in the geometric mean: {word}")
                continue
            ratios = {item.ours.case: item.ratio(goal.peer.name) for item in held}
            missed = [
                f"{case} {_value(goal, ratio)}"
                for case, ratio in ratios.items()
                if not _met(goal, ratio)
            ]
            where = f"{len(held)} cases" if len(held) > 1 else held[0].ours.case
            if missed:
                lines.append(f"goal: {_text(goal)} in {where}: missed ({'; '.join(missed)})")
            else:
                worst = min(ratio for ratio in ratios.values() if ratio is not None)
                lines.append(f"goal: {_text(goal)} in {where}: met (worst {_value(goal, worst)})")
        return lines

    def _notes(self) -> list[str]:
        return [
            f"{row.contender}, {row.case}: {row.gate}"
            for item in self.items
            for row in (item.ours, *item.peers.values())
            if not row.passed
        ]


def _met(goal: Goal, ratio: float | None) -> bool:
    return ratio is not None and ratio >= goal.ratio


def _text(goal: Goal) -> str:
    if not goal.peer.same_work:
        return f"at most {100 * (1 / goal.ratio - 1):.0f} % over the {goal.peer.name}"
    if goal.ratio == 1:
        return f"never slower than {goal.peer.name}"
    return f"at least {goal.ratio:.2f}x {goal.peer.name}"


def _value(goal: Goal, ratio: float | None) -> str:
    if ratio is None:
        return "no figure"
    return f"{ratio:.3f}x" if goal.peer.same_work else f"{100 * (1 / ratio - 1):.1f} %"


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


def sections(rows: Iterable[Row]) -> list[Section]:
    """Rows grouped into tables, in the order of the registry."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row.entry in _ENTRY:  # a row of an entry that was renamed stays in the file
            cases = groups.setdefault((row.entry, row.dtype, row.direction), {})
            cases.setdefault(row.case, {})[row.contender] = row
    found = []
    for (name, dtype, direction), cases in groups.items():
        entry = _ENTRY[name]
        order = [case.name for case in (*entry.quick, *entry.cases)]
        items = tuple(
            Comparison(entry, held["ours"], {k: v for k, v in held.items() if k != "ours"})
            for case, held in sorted(
                cases.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else -1
            )
            if "ours" in held
        )
        if items:
            found.append(Section(entry, dtype, direction, items))

    def place(section: Section) -> tuple[int, int, int]:
        entry = section.entry
        return (
            ENTRIES.index(entry),
            entry.dtypes.index(section.dtype),
            entry.directions.index(section.direction),
        )

    return sorted(found, key=place)


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


def _head(section: Section) -> list[str]:
    unit = section.entry.unit
    own = [] if unit is None else [f"ns / {unit[0]}", "of bound"]
    return ["case", "ours", *own, *section.peers, *_TAIL]


def _cells(item: Comparison, peers: Sequence[str]) -> list[str]:
    ratio = item.ratio(item.strongest)
    against = "" if ratio is None else f"{ratio:.3f}x {item.strongest}"
    figures = [_figure(item.peers.get(name)) for name in peers]
    return [item.ours.case, _figure(item.ours), *_per_unit(item), *figures, against, item.verdict]


def _per_unit(item: Comparison) -> list[str]:
    row, unit = item.ours, item.entry.unit
    if unit is None:
        return []
    if row.median_us is None or row.percent_of_bound is None:
        return ["", ""]
    return [f"{1e3 * row.median_us / unit[1](row.shape):.4g}", f"{row.percent_of_bound:.0f} %"]


def _provenance(all_sections: Sequence[Section]) -> str:
    items = [item for section in all_sections for item in section.items]
    rows = [row for item in items for row in (item.ours, *item.peers.values())]
    timed = [row.n for row in rows if row.median_us is not None]
    peers = dict.fromkeys(r.backend for i in items for r in i.peers.values() if r.backend)
    machines = dict.fromkeys(f"{row.device}, {row.threads} threads" for row in rows)
    torches = dict.fromkeys(row.torch for row in rows)
    commits = dict.fromkeys(row.git or "unknown" for row in rows)
    days = dict.fromkeys(row.date[:10] for row in rows)
    backends = dict.fromkeys(item.ours.backend for item in items)
    count = f"; medians of {min(timed)} to {max(timed)} rounds in turns" if timed else ""
    return (
        f"{'; '.join(machines)}; torch {', '.join(torches)}; commit {', '.join(commits)}; "
        f"{', '.join(days)}; ours: backend {', '.join(backends)}; against "
        f"{', '.join(peers) or 'nothing'}{count}. Every time passed its gate in the same run."
    )


_TAIL = ("strongest peer", "result")


def markdown_table(rows: Iterable[Row]) -> str:
    """Markdown of the latest rows: a table per entry, dtype and direction; goals; what was lost.

    Rows of several machines become one part each.
    """
    machines: dict[tuple[str, int], list[Row]] = {}
    for row in latest(rows):
        machines.setdefault((row.device, row.threads), []).append(row)
    return "\n\n".join(part for held in machines.values() for part in _markdown(held))


def _markdown(rows: list[Row]) -> list[str]:
    found = sections(rows)
    if not found:
        return []
    parts = [_provenance(found)]
    for section in found:
        head = _head(section)
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for item in section.items:
            cells = _cells(item, section.peers)
            if cells[-1] in _BAD:
                cells[-1] = f"**{cells[-1]}**"
            lines.append("| " + " | ".join(cells) + " |")
        parts += [f"**{section.title}**", "\n".join(lines)]
        if section.lines:
            parts.append("\n".join(f"- {line}" for line in section.lines))
    parts.append(_summary(found))
    return parts


def print_table(rows: Iterable[Row], console: Any = None) -> None:
    """The same with rich: cases lost, goals missed and gates failed in red, and by a word."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    found = sections(rows)
    for section in found:
        table = Table(title=section.title, title_justify="left", title_style="bold")
        for column in _head(section):
            table.add_column(column, justify="left" if column == "case" else "right")
        for item in section.items:
            cells = [Text(cell) for cell in _cells(item, section.peers)]
            colour = "red" if item.verdict in _BAD else "green" if item.verdict else ""
            for cell in cells[-2:]:
                cell.stylize(colour)
            table.add_row(*cells)
        console.print(table)
        for line in section.lines:
            bad = ": missed" in line or ": failed" in line
            console.print(Text(line, style="red" if bad else ""))
        console.print()
    if found:
        console.print(Text(_provenance(found)))
        console.print(Text(_summary(found)))


def _summary(found: Sequence[Section]) -> str:
    """Cases lost, by name: the line that nobody has to look for."""
    items = [(section, item) for section in found for item in section.items]
    lost = [
        f"{section.entry.name} {item.ours.case} {section.dtype} {_DIRECTION[section.direction]}"
        for section, item in items
        if item.lost
    ]
    failed = sum(not item.ours.passed for _, item in items)
    text = f"Cases lost to a peer: {len(lost)} of {len(items)}"
    text += f" ({'; '.join(lost)})." if lost else "."
    return text + (f" Gates failed: {failed}." if failed else "")


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
