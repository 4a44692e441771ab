"""Tables say what the rows say: ratios, goals, losses, failures."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest

from benchmarks.registry import ENTRIES, FORWARD, FORWARD_BACKWARD
from benchmarks.run import Row, write_rows
from benchmarks.table import geometric_mean, latest, main, markdown_table, print_table, sections

ENTRY = ENTRIES[0]
FIRST, SECOND = ENTRY.cases[:2]


def row(contender: str, median: float | None, **changes: object) -> Row:
    base = Row(
        id=f"{ENTRY.name}/{FIRST.name}/{FORWARD_BACKWARD}/float32/{contender}",
        family=ENTRY.family,
        op=ENTRY.op,
        direction=FORWARD_BACKWARD,
        backend="cpu" if contender == "ours" else f"{contender} (package 1.0)",
        case=FIRST.name,
        shape=dict(FIRST.sizes),
        dtype="float32",
        median_us=median,
        p20_us=median,
        p80_us=median,
        n=5 if median else 0,
        peak_mb=1.0,
        gb_per_s=1.0,
        tflop_per_s=1.0,
        percent_of_bound=50.0,
        gate="passed: 0.50 of the error budget (y)",
        git="abc",
        torch="2.13.0",
        triton="",
        cuda="",
        device="A processor, 2 cores",
        threads=2,
        date="2026-01-02T00:00:00+00:00",
    )
    return replace(base, **changes)


def second(old: Row) -> Row:
    name = old.id.replace(FIRST.name, SECOND.name)
    return replace(old, id=name, case=SECOND.name, shape=dict(SECOND.sizes))


def test_ratio_is_against_the_strongest_peer_and_never_the_bound() -> None:
    rows = [
        row("ours", 1000.0),
        row("PEFT", 1200.0),
        row("addmm path", 1100.0),
        row("bare linear", 950.0),
    ]
    (section,) = sections(rows)
    (item,) = section.items
    assert item.strongest == "addmm path"
    assert item.ratio(item.strongest) == pytest.approx(1.1)
    assert not item.lost and item.verdict == "met"


def test_a_lost_case_and_a_missed_goal_are_named() -> None:
    rows = [row("ours", 1000.0), row("PEFT", 1050.0), row("addmm path", 990.0)]
    rows += [second(row("ours", 1000.0)), second(row("PEFT", 1200.0))]
    text = markdown_table(rows)
    assert "0.990x addmm path | **LOST** |" in text
    assert "Cases lost to a peer: 1 of 2 (triple_lora_linear N512 D1024 r16 float32" in text
    mean = math.sqrt(1.05 * 1.2)
    assert f"geometric mean: {mean:.3f}x PEFT (2 of 2 cases)" in text
    assert "goal: at least 1.10x PEFT in the geometric mean: met" in text
    assert "goal: never slower than PEFT in 2 cases: met (worst 1.050x)" in text
    assert "goal: never slower than addmm path in 2 cases: missed" in text
    assert "at most 12 % over the bare linear in N2048 D1024 r16: missed" in text  # no figure


def test_a_mean_over_fewer_cases_does_not_meet_a_goal() -> None:
    failed = second(row("ours", None, gate="failed: y over budget 3 times", n=0))
    text = markdown_table([row("ours", 1000.0), row("PEFT", 2000.0), failed])
    assert "goal: at least 1.10x PEFT in the geometric mean: missed (1 without a figure)" in text
    assert "geometric mean: 2.000x PEFT (1 of 2 cases)" in text


def test_a_failed_gate_is_printed_as_a_failure_and_not_as_a_time() -> None:
    failed = row("ours", None, gate="failed: y over budget 3 times", n=0)
    text = markdown_table([failed])
    assert "| failed |" in text and "**FAILED**" in text and "y over budget 3 times" in text
    assert " us" not in text and " ms" not in text
    buffer = io.StringIO()
    from rich.console import Console

    print_table([failed], Console(file=buffer, width=160))
    assert "FAILED" in buffer.getvalue() and "Gates failed: 1" in buffer.getvalue()


def test_colours_only_mark_what_words_say_too() -> None:
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=160, force_terminal=True)
    print_table([row("ours", 1000.0), row("PEFT", 900.0)], console)
    assert "\x1b[31mLOST" in buffer.getvalue()


def test_time_a_unit_and_share_of_the_bound() -> None:
    """8192 problems of 100 iterations in 40960 us: 50 ns each."""
    entry = next(entry for entry in ENTRIES if entry.op == "sinkhorn")
    case = next(case for case in entry.cases if case.sizes["n"] == 16)
    base = row("ours", 40960.0, family=entry.family, op=entry.op, direction=FORWARD)
    name = f"{entry.name}/{case.name}/{FORWARD}/float32"
    ours = replace(base, id=f"{name}/ours", case=case.name, shape=dict(case.sizes))
    theirs = replace(ours, id=f"{name}/POT log", backend="POT", median_us=4.2e6)
    text = markdown_table([ours, theirs])
    assert "| case | ours | ns / problem-iteration | of bound | POT log |" in text
    assert f"| {case.name} | 40.96 ms | 50 | 50 % | 4200.00 ms | 102.539x POT log |" in text
    assert "goal: at least 100.00x POT log in B8192 n16 m16: met (worst 102.539x)" in text


def test_latest_keeps_one_run_whole() -> None:
    old = [row("ours", 1000.0), row("PEFT", 1200.0), row("addmm path", 1100.0)]
    new = [replace(r, date="2026-01-03T00:00:00+00:00") for r in old[:2]]
    other = [replace(r, device="Another, 4 cores") for r in old]
    assert latest([*old, *new, *other]) == [*new, *other]


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])


def test_tables_are_written_between_markers_and_checked(tmp_path, capsys) -> None:
    results, page = tmp_path / "machine.jsonl", tmp_path / "page.md"
    write_rows([row("ours", 1000.0), row("PEFT", 1200.0)], results)
    page.write_text(
        "a\n<!-- benchmarks:triple_lora -->\nold\n<!-- /benchmarks:triple_lora -->\nb\n"
    )
    assert main([str(results), "--check", str(page)]) == 1
    assert main([str(results), "--write", str(page)]) == 0
    assert main([str(results), "--check", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text
    assert "1.00 ms | 1.20 ms | 1.200x PEFT" in text
    capsys.readouterr()
    assert main([str(results)]) == 0
    assert "1.200x PEFT" in capsys.readouterr().out
