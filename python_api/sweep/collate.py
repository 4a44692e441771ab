"""From the lines of all runs to one summary per row: means, paired differences, cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from python_api.sweep.bootstrap import interval
from python_api.sweep.grid import Grid
from python_api.sweep.records import Line

__all__ = ["Difference", "Summary", "collate"]

Lines = Mapping[tuple[str, int], Sequence[Line]]
Values = dict[tuple[int, str], float]  # by seed and party


@dataclass(frozen=True)
class Difference:
    """The mean of a row minus the first row over `pairs` seeds and parties, and its interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def seen(self) -> bool:
        """Whether the interval lies on one side of 0. One pair has none."""
        return self.pairs > 1 and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Summary:
    """A row of the table. means: by party; mean: over seeds and parties; before: by party, round 0;
    also: further metrics.

    difference is None for the first row, and where no seed and party is done in both.
    seconds (the median: the first runs of a process pay for its imports), bytes and passes are
    those of a run, all parties together.
    """

    row: str
    means: Mapping[str, float]
    mean: float | None
    before: Mapping[str, float]
    seeds: int
    difference: Difference | None
    by_party: Mapping[str, Difference]
    also: Mapping[str, float]
    seconds: float | None
    bytes: float | None
    passes: float | None


def collate(lines: Lines, grid: Grid, *, also: Sequence[str] = ()) -> list[Summary]:
    """One summary per row of the grid, in its order; `also` names metrics beside the headline."""
    by_row = {
        row.name: [
            line
            for seed in grid.seeds
            for line in lines.get((row.name, seed), ())
            if line["status"] == "finished"
        ]
        for row in grid.rows
    }
    first = values(by_row[grid.rows[0].name], grid)
    return [
        _summary(row.name, by_row[row.name], grid, first if number else None, also)
        for number, row in enumerate(grid.rows)
    ]


def values(
    lines: Iterable[Line], grid: Grid, *, metric: str | None = None, key: str = "metrics"
) -> Values:
    """A metric by seed and party, of the grid's parties, where it is a number."""
    found = {
        (line["seed"], line["party"]): line[key].get(grid.split, {}).get(metric or grid.metric)
        for line in lines
        if not grid.party or line["party"] in grid.party
    }
    return {at: value for at, value in found.items() if value is not None}


def _summary(
    row: str, lines: list[Line], grid: Grid, first: Values | None, also: Sequence[str]
) -> Summary:
    own = values(lines, grid)
    parties = list(dict.fromkeys(party for _, party in own))
    runs = {line["seed"]: line for line in lines}
    passes = [line["passes"] for line in lines if line["passes"] is not None]
    further = {name: _mean(values(lines, grid, metric=name).values()) for name in also}
    return Summary(
        row=row,
        means=_by_party(own),
        mean=_mean(own.values()),
        before=_by_party(values(lines, grid, key="before")),
        seeds=len(runs),
        difference=None if first is None else _difference(own, first),
        by_party={
            party: found
            for party in parties
            if first is not None and (found := _difference(_of(own, party), _of(first, party)))
        },
        also={name: value for name, value in further.items() if value is not None},
        seconds=statistics.median(line["seconds"] for line in runs.values()) if runs else None,
        bytes=_mean(line["bytes"] for line in runs.values()),
        passes=sum(passes) / len(runs) if passes else None,
    )


def _difference(own: Values, first: Values) -> Difference | None:
    pairs = [own[at] - first[at] for at in own if at in first]
    if not pairs:
        return None
    return Difference(statistics.mean(pairs), *interval(pairs), len(pairs))


def _by_party(found: Values) -> dict[str, float]:
    parties = dict.fromkeys(party for _, party in found)
    return {party: statistics.mean(_of(found, party).values()) for party in parties}


def _of(found: Values, party: str) -> Values:
    return {at: value for at, value in found.items() if at[1] == party}


def _mean(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return statistics.mean(found) if found else None
