"""The section on kernel times, from the benchmark's own comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from python_api.report.parts import Section, Table

__all__ = ["speed_section"]

_DIRECTIONS = {"fwd": "forward", "fwd_bwd": "forward + backward"}


def speed_section(groups: Sequence[Any]) -> Section:
    """The tables of ``fedkernels_benchmarks.table.sections`` as one section of the page.

    Every case is there, those that a peer wins and those that failed their gate included; what the
    benchmark says about means and goals is taken over word by word.
    """
    items = [item for group in groups for item in group.items]
    timed = [item for item in items if item.ours.median_us is not None]
    against = [item for item in timed if item.ratio(item.strongest) is not None]
    lost = [item for item in against if item.lost]
    texts = []
    if against:
        texts.append(
            "Against the fastest peer that computes the same, ours was faster in "
            f"{len(against) - len(lost)} of {len(against)} cases"
            + (f"; slower in: {_names(lost)}." if lost else ".")
        )
    elif timed:
        texts.append("No peer that computes the same was timed.")
    failed = [item for item in items if not item.ours.passed]
    if failed:
        texts.append(
            f"{len(failed)} of {len(items)} cases failed their accuracy test and have no time: "
            f"{_names(failed)}."
        )
    notes = ["A first look with short timings; fedkernels bench has the full table."]
    if timed:
        row = timed[0].ours
        notes.append(f"{row.device}, {row.threads} threads, torch {row.torch}.")
    said = "\n".join(f"{group.title}: {line}" for group in groups for line in group.lines)
    table = Table(
        caption="Median time of one call. Each case passed its accuracy test against float64 in "
        "this same run before it was timed; ours and its peers took turns. Ratio: the peer's time "
        "over ours, so above 1 ours is faster.",
        columns=("kernel", "size", "dtype", "direction", "ours", "peer", "ratio", "fastest peer"),
        rows=tuple(_cells(item) for item in timed),
        left=(0, 1, 2, 3, 7),
    )
    return Section(
        "speed",
        "Kernel times on this machine",
        texts=tuple(texts) or ("No case was timed.",),
        tables=(table,),
        notes=tuple(notes),
        more=(("Means, goals and what failed", said),) if said else (),
    )


def _cells(item: Any) -> tuple[str, ...]:
    ours, rival = item.ours, item.peers.get(item.strongest)
    ratio = item.ratio(item.strongest)
    return (
        item.entry.name,
        ours.case,
        ours.dtype,
        _DIRECTIONS.get(ours.direction, ours.direction),
        _microseconds(ours.median_us),
        _microseconds(rival.median_us) if rival is not None else "–",
        f"{ratio:.2f}" if ratio is not None else "–",
        rival.backend if rival is not None else "none",
    )


def _microseconds(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.1f} ms"
    return f"{value:.1f} µs" if value < 100 else f"{value:.0f} µs"


def _names(items: Sequence[Any]) -> str:
    return "; ".join(
        f"{item.entry.name} {item.ours.case} {_DIRECTIONS.get(item.ours.direction, '')}".rstrip()
        for item in items
    )
