"""rows.jsonl: whatever a kill leaves, whole runs count and nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from python_api.sweep import load_grid, make_plan
from python_api.sweep.records import append_lines, current_lines, finished, lines_of, mend

from .conftest import metric


@pytest.fixture
def plan(folder):
    made = make_plan("c.toml", load_grid("grid.toml"), folder / "out")
    made.path.mkdir()
    return made


def told(job, *parties, **more):
    return [
        {
            "row": job.row,
            "seed": job.seed,
            "party": party,
            "status": "finished",
            "parties": 2,
            "hash": job.hash,
            **more,
        }
        for party in parties
    ]


def failed(job):
    return [told(job, None)[0] | {"status": "failed", "reason": "disk"}]


def test_a_run_without_all_its_parties_is_not_done(plan):
    one, two = plan.jobs[:2]
    append_lines(plan.path, told(one, "a", "b"))
    append_lines(plan.path, told(two, "a"))
    assert set(current_lines(plan)) == {(one.row, one.seed)}


def test_a_torn_line_is_cut_off(plan):
    one, two = plan.jobs[:2]
    append_lines(plan.path, told(one, "a", "b"))
    whole = (plan.path / "rows.jsonl").read_bytes()
    for torn in (b'{"row": "fa', b"\xc3"):
        (plan.path / "rows.jsonl").write_bytes(whole + torn)
        mend(plan.path)
        assert (plan.path / "rows.jsonl").read_bytes() == whole
    append_lines(plan.path, told(two, "a", "b"))
    assert len(current_lines(plan)) == 2


def test_the_last_run_counts(plan):
    job = plan.jobs[0]
    key = (job.row, job.seed)
    append_lines(plan.path, failed(job))
    assert not finished(current_lines(plan)) and len(current_lines(plan)[key]) == 1
    append_lines(plan.path, told(job, "a", "b", value=1))
    append_lines(plan.path, told(job, "a", "b", value=2))
    assert [line["value"] for line in current_lines(plan)[key]] == [2, 2]
    assert finished(current_lines(plan)) == {key}
    append_lines(plan.path, failed(job))
    assert not finished(current_lines(plan))


def test_runs_of_another_config_do_not_count(plan):
    job = plan.jobs[0]
    append_lines(plan.path, [line | {"hash": "other"} for line in told(job, "a", "b")])
    assert current_lines(plan) == {}


def test_what_is_kept_of_a_run(plan):
    job, grid = plan.jobs[0], plan.grid
    run = SimpleNamespace(
        metrics=[
            metric("a", "accuracy", 0.1, round=0),
            metric("a", "accuracy", 0.2, phase="global"),
            metric("a", "accuracy", 0.3),
            metric("a", "loss", None),
            metric("a", "accuracy", 0.9, split="validation"),
            metric("b", "passes", 40, split="train"),
        ],
        traffic=[{"op": "fit", "bytes": 7}, {"op": "evaluate", "bytes": 100}],
        status={"algorithm": "local"},
    )
    a, b = lines_of(run, job, grid, seconds=1.23456, threads=2)
    assert a["value"] == 0.3 and a["metrics"]["validation"] == {"accuracy": 0.9}
    assert a["before"] == {"test": {"accuracy": 0.1}} and a["metrics"]["test"]["loss"] is None
    assert (b["party"], b["value"], b["passes"], b["bytes"]) == ("b", None, 40, 7)
    assert (a["seconds"], a["threads"], a["parties"], a["hash"]) == (1.235, 2, 2, job.hash)
    assert json.loads(json.dumps(a)) == a
