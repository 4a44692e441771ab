"""rows.jsonl: what is kept of every run, and which runs it proves done.

One line per run and party, written at once for a run:

    row, seed, party     whose numbers
    status               "finished", or "failed" with its `reason` (party is null then)
    metric, value        the grid's headline in the party's last row
    metrics, before      {split: {metric: value}}: the last rows, and those before training
    passes               forward-backward passes, where the algorithm records them
    seconds, bytes       of the whole run; bytes without evaluation
    algorithm, threads, parties (lines of this run), hash
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_api.run.result import read_lines

if TYPE_CHECKING:
    from python_api.run import Run
    from python_api.sweep.grid import Grid
    from python_api.sweep.plan import Job, Plan

__all__ = ["Line", "append_lines", "current_lines", "failed_line", "finished", "lines_of"]

Line = dict[str, Any]
NAME = "rows.jsonl"


def lines_of(run: Run, job: Job, grid: Grid, *, seconds: float, threads: int) -> list[Line]:
    """What is kept of a finished run."""
    last: dict[str, dict[str, dict[str, float | None]]] = {}
    before: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in run.metrics:
        for kept in (last, before) if row["round"] == 0 else (last,):
            splits = kept.setdefault(row["party"], {})
            splits.setdefault(row["split"], {})[row["metric"]] = row["value"]
    sent = sum(row["bytes"] for row in run.traffic if row["op"] != "evaluate")
    return [
        {
            "row": job.row,
            "seed": job.seed,
            "party": party,
            "status": "finished",
            "metric": grid.metric,
            "value": splits.get(grid.split, {}).get(grid.metric),
            "metrics": splits,
            "before": before.get(party, {}),
            "passes": splits.get("train", {}).get("passes"),
            "seconds": round(seconds, 3),
            "bytes": sent,
            "algorithm": run.status["algorithm"],
            "threads": threads,
            "parties": len(last),
            "hash": job.hash,
        }
        for party, splits in last.items()
    ]


def failed_line(job: Job, reason: str) -> Line:
    """What is kept of a run that could not be finished."""
    return {
        "row": job.row,
        "seed": job.seed,
        "party": None,
        "status": "failed",
        "reason": reason,
        "hash": job.hash,
    }


def append_lines(folder: Path, lines: Sequence[Line]) -> None:
    """A run's lines go in by one write, at the end: readers see all of them or none."""
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    handle = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def mend(folder: Path) -> None:
    """Cuts off a last line that a kill left unfinished, so that the next one starts afresh."""
    path = folder / NAME
    if path.is_file():
        with path.open("rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)


def current_lines(plan: Plan) -> dict[tuple[str, int], list[Line]]:
    """By row and seed the lines of the run that the plan asks for; the last one counts.

    Left out: runs of another grid or config, and runs of which a line is missing.
    """
    wanted = {(job.row, job.seed): job.hash for job in plan}
    found: dict[tuple[str, int], list[Line]] = {}
    for line in read_lines(plan.path / NAME):
        key = (line["row"], line["seed"])
        if wanted.get(key) != line["hash"]:
            continue
        known = found.get(key, [])
        again = line["status"] == "failed" or any(
            other["party"] in (line["party"], None) for other in known
        )
        found[key] = [line] if again else [*known, line]
    return {
        key: lines
        for key, lines in found.items()
        if lines[0]["status"] == "failed" or len(lines) == lines[0]["parties"]
    }


def finished(lines: Mapping[tuple[str, int], Iterable[Line]]) -> set[tuple[str, int]]:
    """The rows and seeds that need not run again: those that did not fail."""
    return {key for key, own in lines.items() if all(line["status"] != "failed" for line in own)}
