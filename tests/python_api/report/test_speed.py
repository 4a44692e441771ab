"""The section on kernel times, from rows as the benchmark writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.registry import ENTRIES
from benchmarks.run import Row
from benchmarks.table import sections
from python_api.report import write_report
from python_api.report.speed import speed_section


def row(contender: str, microseconds: float | None, *, gate: str = "passed: same") -> Row:
    entry = ENTRIES[0]
    case = entry.quick[0]
    return Row(
        id=f"{entry.name}/{case.name}/fwd/float32/{contender}",
        family=entry.family,
        op=entry.op,
        direction="fwd",
        backend="cpu" if contender == "ours" else f"{contender} 9.9",
        case=case.name,
        shape=dict(case.sizes),
        dtype="float32",
        median_us=microseconds,
        p20_us=microseconds,
        p80_us=microseconds,
        n=5,
        peak_mb=None,
        gb_per_s=None,
        tflop_per_s=None,
        percent_of_bound=None,
        gate=gate,
        git="",
        torch="2.13.0",
        triton="",
        cuda="",
        device="a test",
        threads=2,
        date="2026-11-24T09:00:00+00:00",
    )


@pytest.fixture
def rival() -> str:
    return next(peer.name for peer in ENTRIES[0].peers if peer.same_work)


def test_a_case_that_we_win(rival: str) -> None:
    section = speed_section(sections([row("ours", 50.0), row(rival, 60.0)]))
    assert "faster in 1 of 1 cases." in section.texts[0]
    assert section.tables[0].rows[0][4:] == ("50.0 µs", "60.0 µs", "1.20", f"{rival} 9.9")


def test_a_case_that_we_lose_is_named(rival: str) -> None:
    section = speed_section(sections([row("ours", 50.0), row(rival, 40.0)]))
    assert f"faster in 0 of 1 cases; slower in: {ENTRIES[0].name}" in section.texts[0]
    assert section.tables[0].rows[0][-2] == "0.80"


def test_a_bound_is_no_rival() -> None:
    bound = next(peer.name for peer in ENTRIES[0].peers if not peer.same_work)
    section = speed_section(sections([row("ours", 50.0), row(bound, 40.0)]))
    assert section.texts == ("No peer that computes the same was timed.",)
    assert section.tables[0].rows[0][5:] == ("–", "–", "none")


def test_a_case_that_failed_its_gate_has_no_time(rival: str) -> None:
    failed = replace(row("ours", None), gate="failed: dT over budget <b>")
    section = speed_section(sections([failed, row(rival, 40.0, gate="")]))
    assert section.tables[0].rows == ()
    assert "1 of 1 cases failed their accuracy test" in section.texts[0]
    assert "failed: dT over budget" in str(section.more[0][1])


def test_no_rows_at_all() -> None:
    assert speed_section([]).texts == ("No case was timed.",)


def test_the_section_stands_in_the_page(
    make_run: Callable[..., Path], tmp_path: Path, rival: str
) -> None:
    section = speed_section(sections([row("ours", 50.0), row(rival, 60.0)]))
    out = tmp_path / "demo" / "report.html"
    one, two = make_run("one"), make_run("two", algorithm="local")
    for folders in ((one,), (one, two)):
        write_report(*folders, out=out, extra=[section], figures=False)
        text = out.read_text(encoding="utf-8")
        assert text.count("Kernel times on this machine</h2>") == 1
        assert 'href="#all-speed"' in text and 'id="all-speed"' in text
