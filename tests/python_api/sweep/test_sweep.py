"""A sweep from start to end: what runs, what does not run again, and how it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from python_api import InputError, Interrupted
from python_api.cli import main
from python_api.run import load
from python_api.sweep import load_grid, make_plan, run_plans, sweep
from python_api.sweep.plan import Job
from python_api.sweep.workers import Pool

COMMAND = ["sweep", "c.toml", "--grid", "grid.toml", "--out", "out"]


def rows(folder):
    return [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]


def test_a_sweep_and_the_same_again(folder, runner):
    said = []
    done = sweep("c.toml", "grid.toml", out="out", say=said.append)
    assert runner.calls == [(1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-2, 1)]
    assert runner.options["report"] is False and runner.options["keep"] == "last"
    assert len(rows(folder)) == 8 and not done.failed
    assert said[0].startswith("1/4  plain  seed 0  a 0.500  b 0.200") and "left" in said[0]
    assert "left" not in said[-1]
    assert {p.name for p in Path("out").iterdir()} == {
        ".lock",
        "figure.png",
        "grid.toml",
        "rows.jsonl",
        "runs",
        "table.md",
    }
    assert "| fast | 0.650 | 0.350 | 0.500 | 2 | +0.100 [+0.100, +0.100] | 4 |" in done.table
    assert Path("out/table.md").read_text() == done.table
    before = Path("out/rows.jsonl").read_bytes()
    again = sweep("c.toml", load_grid("grid.toml"), out="out", say=said.append)
    assert len(runner.calls) == 4 and said[-1] == "4 of 4 runs are there already"
    assert again.table == done.table and Path("out/rows.jsonl").read_bytes() == before


def test_only_what_is_missing_or_changed_runs(folder, runner):
    sweep("c.toml", "grid.toml", out="out")
    runner.calls.clear()
    grid = folder / "grid.toml"
    grid.write_text(grid.read_text().replace("[0, 1]", "[1, 2]").replace("1e-2", "3e-2"))
    done = sweep("c.toml", "grid.toml", out="out")
    assert runner.calls == [(3e-2, 1), (1e-3, 2), (3e-2, 2)]
    assert set(done.lines) == {(r, s) for r in ("plain", "fast") for s in (1, 2)}


def test_another_metric_runs_nothing_again(folder, runner):
    sweep("c.toml", "grid.toml", out="out")
    grid = folder / "grid.toml"
    grid.write_text('metric = "passes"\nsplit = "train"\nparty = "b"\n' + grid.read_text())
    done = sweep("c.toml", "grid.toml", out="out")
    assert len(runner.calls) == 4 and "| plain | 30.000 | 2 |" in done.table


def test_a_metric_that_nobody_records_is_said_at_once(folder, runner):
    runner.metric = "balanced_accuracy"
    said = []
    sweep("c.toml", "grid.toml", out="out", say=said.append)
    assert said[0] == (
        "warning: plain records no accuracy on the test split; it records balanced_accuracy"
    )
    assert sum("warning" in line for line in said) == 1


def test_a_failed_run_stops_no_other_and_is_tried_again(folder, runner, capsys):
    runner.fails.add((1e-2, 0))
    assert main(COMMAND) == 1
    text = capsys.readouterr()
    assert len(runner.calls) == 4
    assert "2/4  fast  seed 0  failed: ZeroDivisionError: no rows" in text.err
    assert text.err.splitlines()[-1] == (
        "1 runs failed; first: fast, seed 0: ZeroDivisionError: no rows"
    )
    assert "- fast, seed 0: ZeroDivisionError: no rows" in Path("out/table.md").read_text()
    runner.fails.clear()
    assert main(COMMAND) == 0
    assert runner.calls[4:] == [(1e-2, 0)]
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "table: out/table.md",
        "figure: out/figure.png",
        "rows: out/rows.jsonl",
    ]


def test_ctrl_c_keeps_what_is_done(folder, runner, capsys):
    runner.stops.add((1e-3, 1))
    assert main(COMMAND) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "interrupted; 2 of 4 runs are done, the same command goes on"
    assert len(rows(folder)) == 4 and Path("out/figure.png").is_file()
    runner.stops.clear()
    assert main(COMMAND) == 0 and runner.calls[3:] == [(1e-3, 1), (1e-2, 1)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("seed = [0, 1]", "seed = 1"), "grid.toml: seed: 1; expected a list of whole numbers"),
        (
            ('"train.lr"', '"train.rl"'),
            "row fast: c.toml: ",
        ),
        (("1e-2", '"high"'), "row fast: c.toml: train.lr: 'high'; expected a number"),
        (
            ('"train.lr" = 1e-2', '"party.b.task" = { train = "none.csv" }'),
            "row fast: ",
        ),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(folder, runner, capsys, change, line):
    grid = folder / "grid.toml"
    grid.write_text(grid.read_text().replace(*change))
    assert main(COMMAND) == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1
    assert not Path("out").exists() and runner.calls == []


def test_what_else_the_command_refuses(folder, runner, capsys):
    assert main([*COMMAND, "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "jobs: 0; expected 1 or more\n"
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("years")
    assert main(COMMAND) == 2
    assert "out exists and is no sweep" in capsys.readouterr().err
    assert [p.name for p in Path("out").iterdir()] == ["thesis.txt"] and runner.calls == []


def test_two_sweeps_do_not_share_a_folder(folder, runner):
    sweep("c.toml", "grid.toml", out="out")
    with (
        FileLock("out/.lock"),
        pytest.raises(InputError, match="out: another process sweeps into it"),
    ):
        sweep("c.toml", "grid.toml", out="out")


def test_several_sweeps_at_once_without_their_folders(folder, runner):
    grid, seen = load_grid("grid.toml"), []
    plans = [
        make_plan("c.toml", grid, f"out/{name}", overrides={"rounds": n}, keep_folders=False)
        for n, name in enumerate(("x", "y"), 1)
    ]
    done = run_plans(plans, after=lambda made: seen.append(made.path.name))
    assert [made.path.name for made in done] == ["x", "y"] and len(runner.calls) == 8
    assert seen == ["x", "x", "y", "y"] * 2 + ["x", "y"]  # seed by seed, then each at the end
    assert not list(Path("out").glob("*/runs/*")) and Path("out/y/figure.png").is_file()


def test_processes_run_real_runs(tables):
    """Two processes, four runs, with the models of the last round and without reports."""
    done = sweep("t.toml", "grid.toml", out="out", jobs=2)
    assert not done.failed and len(rows(tables)) == 8
    kept = load("out/runs/fast-1")
    assert kept.config.train.lr == 1e-2 and kept.config.seed == 1
    left, right = done.lines["fast", 1]
    assert kept.headline() == {"left": left["value"]} and right["value"] is None
    assert left["passes"] > 0 and left["bytes"] > 0
    assert not kept.report.exists() and kept.parties == ("left", "right")
    assert [p.name for p in (kept.path / "checkpoints").iterdir()] == ["round-000002"]


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_fails_its_run_only(folder):
    grid = load_grid("grid.toml")
    bad = [Job(name, 0, "c.toml", {"x": Bomb()}, Path(name), "0") for name in ("x", "y", "z")]
    with Pool(2) as pool:
        found = {job.row: own for job, own in pool.run([(job, grid) for job in bad], bool)}
    assert {own[0]["reason"] for own in found.values()} == {"its process ended with exit code 3"}
    assert sorted(found) == ["x", "y", "z"]  # the third in a process that took the place of one


def test_ctrl_c_stops_the_runs_in_hand(tables):
    root = str(Path(__file__).parents[3])
    config = tables / "t.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 1000000"))
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with (tables / "err").open("w") as err:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "python_api.cli",
                "sweep",
                "t.toml",
                *COMMAND[2:],
                "--jobs",
                "2",
            ],
            stdout=subprocess.DEVNULL,
            stderr=err,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        end = time.monotonic() + 100
        runs = tables / "out" / "runs"
        while len(list(runs.glob("*-0/metrics.jsonl"))) < 2 and time.monotonic() < end:
            assert process.poll() is None, (tables / "err").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    said = (tables / "err").read_text()
    assert said.splitlines()[-1] == "interrupted; 0 of 4 runs are done, the same command goes on"
    assert said.count("stopping") == 1 and "Traceback" not in said
    for status in runs.glob("*/status.json"):
        assert json.loads(status.read_text())["status"] == "interrupted"


def test_ctrl_c_in_python_raises(folder, runner):
    runner.stops.add((1e-3, 0))
    with pytest.raises(Interrupted, match="0 of 4 runs are done") as stop:
        sweep("c.toml", "grid.toml", out="out")
    assert stop.value.path == Path("out")
