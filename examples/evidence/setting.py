"""A setting of an evidence table, and the table of a group of settings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from python_api.sweep import Difference, Grid, Row, Sweep, collate

__all__ = ["Setting", "group_table", "merged", "slim"]

NONE_SEEN = "no difference seen"


@dataclass(frozen=True)
class Setting:
    """One set of data, on which every row runs with every seed.

    name: of its folder. group: whose table it stands in, under the heading `column`.
    source: the config of a seed, without the rows' own keys.
    rows: the first is what the others are paired with.
    also: metrics printed beside the headline. passive: parties behind the bus.
    seconds: what a run takes on one core, for the projection before any run is recorded.
    """

    name: str
    group: str
    column: str
    source: Callable[[int], dict[str, Any]]
    rows: tuple[Row, ...]
    metric: str
    also: tuple[str, ...] = ()
    passive: int = 1
    rounds: int = 40
    seconds: float = 9.0
    keep_folders: bool = False

    def grid(self, seeds: Sequence[int]) -> Grid:
        return Grid(tuple(seeds), self.rows, self.metric)


def group_table(settings: Sequence[Setting], sweeps: Mapping[str, Sweep]) -> str:
    """Markdown: a line per row of the grid, a column per setting, the pooled difference, the cost.

    settings: those of one group. sweeps: by the setting's name.
    """
    first, lines, grid = settings[0], *merged(settings, sweeps)
    found = collate(lines, grid, also=first.also)
    columns = [setting.column for setting in settings]
    pooled = ["all settings"] if len(settings) > 1 else []
    names = ["row", *columns, *pooled, *first.also, "s a round", "MB a round and party", "passes"]
    table = [names, ["---"] * len(names)]
    if before := found[0].before:
        told = ["before training", *(_number(before.get(at), 3) for at in columns)]
        table.append([*told, *[""] * (len(names) - len(told))])
    for row in found:
        whole = all(at in row.means for at in columns)  # else its mean is one of other settings
        runs = [run for at, own in lines.items() if at[0] == row.row for run in own]
        table.append(
            [
                row.row,
                *(_cell(row.means.get(at), row.by_party.get(at)) for at in columns),
                *([_cell(row.mean, row.difference) if whole else "-"] if pooled else []),
                *(_number(row.also.get(name), 3) for name in first.also),
                _number(_median(runs, "seconds", first.rounds), 3),
                _number(_median(runs, "bytes", 1e6 * first.rounds * first.passive), 3),
                _number(_median(runs, "passes"), 0),
            ]
        )
    seeds = [seed for seed in grid.seeds if any(at[1] == seed for at in lines)]
    head = [
        f"### {first.group}",
        "",
        f"{first.metric}; in brackets the difference from `{grid.rows[0].name}` and its 95 % "
        f"interval, paired over {len(seeds)} seeds"
        + (" (all settings: over seeds and settings)." if pooled else "."),
        "",
    ]
    wanted = sum(len(setting.rows) for setting in settings) * len(grid.seeds)
    if sum(map(len, lines.values())) < wanted:
        head[2:2] = ["Not all runs are done: rows may stand on fewer seeds.", ""]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in table)]) + "\n"


def merged(
    settings: Sequence[Setting], sweeps: Mapping[str, Sweep]
) -> tuple[dict[tuple[str, int], list[dict[str, Any]]], Grid]:
    """The settings as if they were parties of one sweep: pairs are then seeds and settings.

    Of every run the party that has the headline stays; its passes become those of all parties.
    """
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for setting in settings:
        done = sweeps[setting.name]
        for at, own in done.lines.items():
            told = slim(own, setting)
            if told is not None:
                lines.setdefault(at, []).append(told | {"party": setting.column})
    rows = {row.name: row for setting in settings for row in setting.rows}
    return lines, replace(sweeps[settings[0].name].grid, rows=tuple(rows.values()))


def slim(lines: Sequence[Mapping[str, Any]], setting: Setting) -> dict[str, Any] | None:
    """What is kept of a run for the record: one line, with the test split only."""
    for line in lines:
        if line["status"] != "finished":
            return None
        test = line["metrics"].get("test", {})
        if test.get(setting.metric) is not None:
            passes = [other["passes"] for other in lines if other["passes"] is not None]
            return {
                "setting": setting.name,
                "row": line["row"],
                "seed": line["seed"],
                "party": line["party"],
                "status": "finished",
                "metrics": {"test": _rounded(test)},
                "before": {"test": _rounded(line["before"].get("test", {}))},
                "passes": sum(passes) if passes else None,
                "seconds": line["seconds"],
                "bytes": line["bytes"],
            }
    return None


def _rounded(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Without recall by class: the record of thousands of runs stays small."""
    return {
        name: round(value, 6)
        for name, value in metrics.items()
        if value is not None and not name.startswith("recall_")
    }


def _cell(mean: float | None, difference: Difference | None) -> str:
    if mean is None:
        return "-"
    if difference is None:
        return f"{mean:.3f}"
    if difference.pairs == 1:
        return f"{mean:.3f} ({difference.mean:+.3f}, one pair)"
    told = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return f"{mean:.3f} ({told}{'' if difference.seen else ', ' + NONE_SEEN})"


def _median(runs: Sequence[Mapping[str, Any]], key: str, over: float = 1) -> float | None:
    found = [run[key] for run in runs if run[key] is not None]
    return statistics.median(found) / over if found else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
