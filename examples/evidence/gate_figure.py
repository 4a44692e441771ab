"""The gate weight of every party over the rounds, from run folders."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from python_api.run import load
from python_api.sweep import interval

__all__ = ["gate_line", "gates", "write_gate_figure"]

COLOURS = ("#0b62a8", "#0f6e53", "#a64b00", "#8e3a80")
Gates = dict[str, list[list[float]]]  # by party: a list of rounds per run


def gates(folders: Sequence[Path]) -> tuple[list[int], Gates]:
    """The rounds that were measured, and per party and run the mean gate weight in each."""
    rounds: list[int] = []
    found: Gates = {}
    for folder in folders:
        rows = [row for row in load(folder).metrics if row["metric"] == "gate"]
        rounds = sorted({row["round"] for row in rows})
        for party in dict.fromkeys(row["party"] for row in rows):
            own = {row["round"]: row["value"] for row in rows if row["party"] == party}
            found.setdefault(party, []).append([own[at] for at in rounds if at in own])
    return rounds, found


def gate_line(found: Gates, party: str) -> str:
    """How far a party's weight moved over the run, with its interval over runs."""
    runs = [own for own in found.get(party, ()) if own]
    if not runs:
        return f"gate of `{party}`: not recorded"
    start, end = (statistics.mean(own[at] for own in runs) for at in (0, -1))
    low, high = interval([own[-1] - own[0] for own in runs])
    return (
        f"gate of `{party}`: {start:.3f} in the first measured round, {end:.3f} in the last "
        f"({end - start:+.3f} [{low:+.3f}, {high:+.3f}], {len(runs)} seeds); equal shares would be "
        f"{1 / len(found):.3f}"
    )


def write_gate_figure(path: Path, rounds: list[int], found: Gates) -> None:
    """A line per party: the mean over runs, each run behind it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for colour, (party, runs) in zip(COLOURS, found.items(), strict=False):
        for own in runs:
            axis.plot(rounds[-len(own) :], own, color=colour, alpha=0.2, linewidth=0.8)
        mean = [statistics.mean(column) for column in zip(*runs, strict=False)]
        axis.plot(rounds[-len(mean) :], mean, "o-", color=colour, markersize=3, label=party)
    axis.axhline(1 / max(len(found), 1), color="#525c66", linestyle=":", label="equal shares")
    axis.set_xlabel("round")
    axis.set_ylabel("gate weight on test rows")
    figure.legend(loc="outside right upper", fontsize=8)
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
