"""table.md: a line per row of the grid, its mean and its difference from the first row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from python_api.sweep.collate import Difference, Lines, Summary, collate
from python_api.sweep.grid import Grid

__all__ = ["cells", "markdown", "missing"]

NONE_SEEN = "no difference seen"


def markdown(lines: Lines, grid: Grid, *, also: Sequence[str] = ()) -> str:
    """The whole page: what the numbers are, the table, a table by party, and what is missing.

    also: metrics of the same split whose means stand beside the headline.
    """
    found = collate(lines, grid, also=also)
    names, rows = cells(found, grid, also=also)
    first = grid.rows[0].name
    page = [
        f"{grid.metric} on the {grid.split} split. Means over {_count(len(grid.seeds), 'seed')}; "
        f"differences are row minus `{first}`, paired over seeds and parties, with 95 % bootstrap "
        "intervals.",
        "",
        *_lines(names, rows),
    ]
    parties = list(dict.fromkeys(party for row in found for party in row.means))
    if len(parties) > 1 and any(row.by_party for row in found):
        page += ["", f"Minus `{first}`, by party:", ""]
        page += _lines(
            ["row", *parties],
            [
                [row.row, *(shown(row.by_party.get(party)) for party in parties)]
                for row in found[1:]
            ],
        )
    absent = missing(lines, grid)
    if absent:
        page += ["", f"Not in the table ({len(absent)} of {_runs(grid)} runs):", ""]
        page += [f"- {line}" for line in absent[:20]]
        page += ["- ..."] if len(absent) > 20 else []
    return "\n".join(page) + "\n"


def cells(
    found: Sequence[Summary], grid: Grid, *, also: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """The column names and a list of texts per row."""
    parties = list(dict.fromkeys(party for row in found for party in row.means))
    whole = ["mean"] if len(parties) > 1 else []
    names = ["row", *parties, *whole, *also, "seeds", f"minus {grid.rows[0].name}", "pairs"]
    names += ["seconds", "MB"]
    counted = any(row.passes is not None for row in found)
    rows = []
    before = found[0].before if found else {}
    if before:  # of the first row
        mean = [_number(statistics.mean(before.values()))] if whole else []
        blank = [""] * (len(also) + 5 + counted)
        rows.append(["before training", *(_number(before.get(p)) for p in parties), *mean, *blank])
    for row in found:
        rows.append(
            [
                row.row,
                *(_number(row.means.get(party)) for party in parties),
                *([_number(row.mean)] if whole else []),
                *(_number(row.also.get(name)) for name in also),
                str(row.seeds),
                shown(row.difference) if row is not found[0] else "",
                str(row.difference.pairs) if row.difference else "",
                _number(row.seconds, 1),
                _number(None if row.bytes is None else row.bytes / 1e6, 2),
                *([_number(row.passes, 0)] if counted else []),
            ]
        )
    return names + (["passes"] if counted else []), rows


def shown(difference: Difference | None) -> str:
    """
    >>> shown(Difference(0.02, 0.01, 0.03, 10)), shown(Difference(0.01, -0.01, 0.03, 10))
    ('+0.020 [+0.010, +0.030]', '+0.010 [-0.010, +0.030] no difference seen')
    """
    if difference is None:
        return "-"
    if difference.pairs == 1:
        return f"{difference.mean:+.3f} (one pair)"
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return text if difference.seen else f"{text} {NONE_SEEN}"


def missing(lines: Lines, grid: Grid) -> list[str]:
    """A line for every run that is not done or has failed, seed by seed."""
    absent = []
    for seed in grid.seeds:
        for row in grid.rows:
            own = lines.get((row.name, seed), ())
            if not own:
                absent.append(f"{row.name}, seed {seed}: not run")
            elif own[0]["status"] == "failed":
                absent.append(f"{row.name}, seed {seed}: {own[0]['reason']}")
    return absent


def _runs(grid: Grid) -> int:
    return len(grid.seeds) * len(grid.rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
