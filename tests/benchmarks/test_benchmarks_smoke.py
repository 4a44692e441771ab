"""A tiny case of every benchmark entry runs, so that benchmarks do not rot."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from benchmarks import run
from benchmarks.machine import device_name, machine_name
from benchmarks.memory import peak_bytes
from benchmarks.peers import Contender, Peer, PeerMissing, package_version
from benchmarks.registry import ENTRIES, SAVED, Case, Entry
from benchmarks.registry.triple_lora import plain
from benchmarks.run import Row, read_rows, run_family, write_rows
from fedkernels.testing.check import Verdict

KEYS = [
    *("id", "family", "op", "direction", "backend", "case", "shape", "dtype"),
    *("median_us", "p20_us", "p80_us", "n", "peak_mb"),
    *("gb_per_s", "tflop_per_s", "percent_of_bound", "gate"),
    *("git", "torch", "triton", "cuda", "device", "threads", "date"),
]

TINY = {
    "N": 6,
    "D": 16,
    "r": 4,
    "L": 3,
    "R": 12,
    "B": 5,
    "n": 6,
    "m": 4,
    "iterations": 200,
    "K": 3,
    "k": 2,
}

SELECT = next(entry for entry in ENTRIES if entry.op == "select_middle")


def tiny(entry: Entry) -> Entry:
    """The entry with one case of a few numbers."""
    sizes = {letter: TINY[letter] for letter in entry.cases[0].sizes}
    return replace(entry, cases=(Case("tiny", sizes),), quick=(), goals=())


def measure(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> list[Row]:
    monkeypatch.setattr(run, "ENTRIES", entries)
    return run_family(entries[0].family, threads=1, seconds=0.001)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_passes_its_gate(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tuple(
        peer
        for peer in entry.peers
        if package_version(peer.package) != "not installed" and not peer.compiles
    )
    assert here, "no peer of this entry is installed"
    entry = replace(entry, peers=here)
    rows = measure(monkeypatch, tiny(entry))
    for row in rows:
        assert row.passed, f"{row.id}: {row.gate}"
        assert row.peak_mb is not None and row.peak_mb >= 0
        if row.direction != SAVED:
            assert 0 < row.p20_us <= row.median_us <= row.p80_us
            assert row.n >= 3
            assert row.percent_of_bound > 0
    contenders = sum(
        1 + sum(dtype in peer.dtypes for peer in entry.peers) for dtype in entry.dtypes
    )
    assert len(rows) == contenders * len(entry.directions)


def test_rows_have_the_keys_of_the_design(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    assert [field.name for field in fields(Row)] == KEYS
    rows = measure(monkeypatch, tiny(SELECT))
    path = tmp_path / "machine.jsonl"
    write_rows(rows, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(list(line) == KEYS for line in lines)
    assert read_rows(path) == rows
    assert len({row.id for row in rows}) == len(rows)


def test_a_wrong_kernel_gets_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The gate compares the timed call: one per cent off is a failure, and nothing is stored."""
    monkeypatch.setattr(
        "fedkernels.testing.check.compare.triple_lora_linear", _one_per_cent_off, raising=True
    )
    rows = measure(monkeypatch, tiny(ENTRIES[0]))
    assert rows
    for row in rows:
        assert row.contender == "ours"  # no peer is timed against nothing
        assert row.gate.startswith("failed")
        assert row.median_us is None and row.n == 0
    path = tmp_path / "machine.jsonl"
    write_rows(rows, path)
    assert path.read_text() == ""


def _one_per_cent_off(*tensors, backend: str, **named) -> torch.Tensor:
    from fedkernels import triple_lora_linear

    y = triple_lora_linear(*tensors, **named, backend=backend)
    return y if backend == "reference" else y * 1.01


_one_per_cent_off.__name__ = "triple_lora_linear"


def test_a_kernel_that_raises_fails_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def gate(problem: object, backend: str) -> Verdict:
        raise RuntimeError("no such instruction\nmore")

    rows = measure(monkeypatch, replace(tiny(SELECT), gate=gate))
    assert [row.gate for row in rows] == ["failed: RuntimeError: no such instruction"]


def test_a_peer_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(problem) -> Contender:
        shape = (len(problem.scores), problem.rank, problem.rank)
        index = torch.arange(problem.rank**2).expand(len(problem.scores), -1)
        return Contender(lambda: (torch.zeros(shape), index), outputs=("T", "index"))

    def missing(problem) -> Contender:
        raise PeerMissing("not here")

    peers = (Peer("wrong", "torch", wrong), Peer("missing", "torch", missing))
    rows = measure(monkeypatch, replace(tiny(SELECT), peers=peers))
    gates = {row.contender: row.gate for row in rows}
    assert gates["wrong"] == "failed: chose other scores"
    assert gates["missing"] == "missing: not here"
    assert {row.contender for row in rows if row.median_us is not None} == {"ours"}


def test_more_activations_than_promised_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = next(entry for entry in ENTRIES if entry.directions == (SAVED,))
    entry = replace(tiny(frozen), problem=plain, dtypes=("float32",))  # A trains: x kept
    ours = measure(monkeypatch, entry)[0]
    assert ours.gate.startswith("failed") and "kept for backward" in ours.gate
    assert ours.peak_mb is None


def test_the_registry_holds_what_was_promised() -> None:
    sizes = [tuple(case.sizes.values()) for case in ENTRIES[0].cases]
    assert sizes == [
        (512, 1024, 16),
        (2048, 1024, 16),
        (1024, 2048, 64),
        (2048, 2048, 16),
        (1024, 768, 8),
    ]
    select = SELECT
    assert [case.sizes["r"] for case in select.cases] == [4, 8, 16, 64, 128]
    assert {(case.sizes["L"], case.sizes["R"]) for case in select.cases} == {(196, 128)}
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert "/" not in entry.name  # the id's separator
        for goal in entry.goals:
            assert goal.peer in entry.peers
            assert any(
                goal.covers(case.name, direction, dtype)
                for case in entry.cases
                for direction in entry.directions
                for dtype in entry.dtypes
            ), f"{entry.name}: a goal that no case can meet or miss"


def test_gate_tests_exist() -> None:
    for entry in ENTRIES:
        path, name = entry.gate_test.split("::")
        assert path.endswith("tests/benchmarks/test_benchmarks_smoke.py")
        assert callable(globals()[name])


def test_counts_of_work() -> None:
    """Flops against a count by hand: N=2, D=3, r=1."""
    sizes = {"N": 2, "D": 3, "r": 1}
    entry = ENTRIES[0]
    # y: 2*2*3*3; h: 2*2*3*1; delta: 2*2*1*3; Q: 2*3*1*1
    assert entry.flops(sizes, "fwd") == 36 + 12 + 12 + 6
    # + dx: 36; dh, dQ, dh A, dA: 4 * 12; dT, dB: 2 * 6
    assert entry.flops(sizes, "fwd_bwd") == 66 + 36 + 48 + 12
    assert entry.bytes_moved(sizes, "fwd", 4) == 4 * (6 + 6 + 9 + 3 + 3 + 1)


def test_unknown_family_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^family must be one of triple_lora, transport, prototype; got 'x'$"
    ):
        run_family("x")


def test_a_line_that_is_no_row_is_named(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: not a benchmark row"):
        read_rows(path)
    path.write_text("{\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: not JSON"):
        read_rows(path)


def test_machine_is_the_processor_and_not_the_host() -> None:
    import platform

    assert platform.node() not in device_name()
    assert machine_name() == machine_name().lower()
    assert not set(machine_name()) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_peak_bytes_counts_what_is_alive_at_once() -> None:
    x = torch.ones(1000)

    def call() -> torch.Tensor:
        y = x + 1
        y = y + 1  # two of 4000 bytes for a moment
        return y + 1

    assert 8000 <= peak_bytes(call) < 8100  # a few bytes more for the ones as tensors


def test_threads_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(run, "ENTRIES", (tiny(SELECT),))
    run_family("triple_lora", threads=before + 1, seconds=0.001)
    assert torch.get_num_threads() == before
