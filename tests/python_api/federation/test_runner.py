"""A whole run of the toy: every file of the folder, and every way in which a run can end."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

import python_api
from python_api import InputError, Interrupted, RunFailed
from python_api.federation import latest_round, load_round
from python_api.progress import LogProgress, Progress
from python_api.run.runner import run_algorithm


def start(toy, path, *, edit=lambda parties: None, min_replies=None, **changes):
    names = ("overwrite", "progress", "report", "keep")
    options = {k: changes.pop(k) for k in names if k in changes}
    config = toy.config(**changes)
    algorithm = toy.Mean(config, edit=edit, min_replies=min_replies)
    return run_algorithm(algorithm, config, path, dump=toy.dump, **options)


def status(path):
    return json.loads((path / "status.json").read_text())


def faulty(name, op, fault):
    def edit(parties):
        next(p for p in parties if p.name == name).fault[op] = fault

    return edit


def raising(error):
    def fault(party):
        raise error

    return fault


def visible(path):
    return sorted(child.name for child in path.iterdir())


ALL = [
    "checkpoints",
    "config.toml",
    "environment.json",
    "figures",
    "log.txt",
    "metrics.jsonl",
    "models",
    "status.json",
    "traffic.jsonl",
]


def test_the_folder_of_a_finished_run(toy, tmp_path):
    path = tmp_path / "deep" / "run"
    run = start(toy, path)
    assert visible(path) == ALL and toy.reports == [path] and run.path == path
    assert (path / "config.toml").read_text().splitlines()[0] == 'algorithm = "mean"'
    ended = status(path)
    assert (ended["status"], ended["round"], ended["rounds"], ended["reason"]) == (
        "finished",
        3,
        3,
        None,
    )
    assert ended["started"] <= ended["ended"] and ended["seconds"] > 0
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    keys = ["round", "party", "phase", "split", "metric", "value", "seconds"]
    assert len(metrics) == 9 and all(list(row) == keys for row in metrics)
    assert run.metrics == metrics and [row["party"] for row in metrics[:3]] == ["a", "b", "c"]
    assert run.headline() == {row["party"]: row["value"] for row in metrics[-3:]}
    assert len(run.traffic) == 3 * 4 * 3 * 2
    environment = json.loads((path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["sizes"] == {name: {"dim": 4} for name in "abc"}
    assert [row["op"] for row in environment["manifest"]] == [
        "download",
        "fit",
        "upload",
        "evaluate",
    ]
    assert visible(path / "models") == ["a", "b", "c"]
    assert visible(path / "models" / "a") == ["base", "native"]
    assert visible(path / "checkpoints") == ["round-000002", "round-000003"]
    log = [line.split(" ", 1)[1] for line in (path / "log.txt").read_text().splitlines()]
    assert log[0] == "mean, seed 0" and log[-1] == "finished" and len(log) == 5
    assert log[1].startswith("round 1/3 done  a 0.")


def test_the_checkpoint_is_what_a_resume_needs(toy, tmp_path):
    run = start(toy, tmp_path / "run")
    found = latest_round(run.path / "checkpoints")
    states = load_round(found.path)
    assert sorted(states) == ["a", "b", "c", "server"] and found.round == 3
    values = (run.path / "models" / "a" / "native" / "x.txt").read_text().split()
    assert states["a"]["x"].tolist() == [float(v) for v in values]
    # the offsets at which this round's lines end: all of them, after the last round
    for name in ("metrics.jsonl", "traffic.jsonl"):
        assert found.extra[name] == (run.path / name).stat().st_size
    earlier = latest_round(run.path / "checkpoints").path.with_name("round-000002")
    assert load_round(earlier)["server"]["mean"].shape == (4,)
    cut = json.loads((earlier / "manifest.sha256.json").read_text())["extra"]["metrics.jsonl"]
    rows = (run.path / "metrics.jsonl").read_bytes()[:cut].decode().splitlines()
    assert len(rows) == 6 and json.loads(rows[-1])["round"] == 2


def test_the_same_seed_gives_the_same_run(toy, tmp_path):
    def facts(name, seed):
        torch.manual_seed(len(name))
        run = start(toy, tmp_path / name, seed=seed)
        values = [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]
        traffic = (run.path / "traffic.jsonl").read_bytes()
        return values, traffic, latest_round(run.path / "checkpoints").hash

    one, two, other = facts("x", 0), facts("yy", 0), facts("z", 1)
    assert one == two
    assert one[0] != other[0] and one[2] != other[2] and one[1] == other[1]


def test_an_existing_folder_is_left_alone(toy, tmp_path):
    run = start(toy, tmp_path / "run", rounds=1)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"exists; expected a new folder, or overwrite"):
        start(toy, run.path)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    start(toy, run.path, overwrite=True)
    assert status(run.path)["rounds"] == 3 and visible(tmp_path) == ["run"]


def test_overwrite_deletes_nothing_but_a_run(toy, tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(precious)
    for path in (precious, precious / "thesis.txt", tmp_path / "link"):
        with pytest.raises(InputError, match="no run folder"):
            start(toy, path, overwrite=True)
    with pytest.raises(InputError, match="expected a place to write to"):
        start(toy, precious / "thesis.txt" / "run")
    assert (precious / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert start(toy, tmp_path / "empty", overwrite=True).status["status"] == "finished"


@pytest.mark.parametrize("error", [InputError("train.csv:3: no column 'text'"), OSError("disk")])
def test_an_error_while_parties_are_built_leaves_nothing(toy, tmp_path, error):
    def edit(parties):
        raise error

    with pytest.raises(type(error)):
        start(toy, tmp_path / "run", edit=edit)
    assert visible(tmp_path) == [] and toy.reports == []


def test_a_failed_run_says_why_and_can_be_read(toy, tmp_path):
    path = tmp_path / "run"

    def fault(party):
        if party.round == 2:
            raise ZeroDivisionError("no rows")

    with pytest.raises(RunFailed, match="round 2, op 'fit': 2 of 3"):
        start(toy, path, edit=faulty("b", "fit", fault))
    ended = status(path)
    assert (ended["status"], ended["round"]) == ("failed", 1)
    assert "b: ZeroDivisionError: no rows" in ended["reason"] and "\n" not in ended["reason"]
    run = python_api.load(path)
    assert len(run.metrics) == 3 and run.parties == ("a", "b", "c") and toy.reports == [path]
    log = (path / "log.txt").read_text()
    assert "Traceback" in log and 'raise ZeroDivisionError("no rows")' in log and "failed: " in log
    assert latest_round(path / "checkpoints").round == 1


def test_a_failed_report_hides_no_failure(toy, tmp_path, monkeypatch):
    def write(folder):
        raise OSError("no space")

    monkeypatch.setattr("python_api.report.write_report", write)
    with pytest.raises(RunFailed, match="upload"):
        start(toy, tmp_path / "a", edit=faulty("b", "upload", raising(ValueError("x"))))
    with pytest.raises(RunFailed, match="run is finished, the report could not be written"):
        start(toy, tmp_path / "b")
    assert status(tmp_path / "b")["status"] == "finished"
    assert "no space" in (tmp_path / "a" / "log.txt").read_text()


def test_a_run_goes_on_without_the_party_that_fails(toy, tmp_path):
    nan = {"x": torch.full((4,), float("nan"))}
    run = start(
        toy,
        tmp_path / "run",
        edit=faulty("c", "upload", lambda party: nan if party.round == 2 else None),
        min_replies=2,
    )
    assert [row["party"] for row in run.metrics] == [*"abc", *"ab", *"abc"]
    log = (run.path / "log.txt").read_text()
    assert "round 2, op 'upload', party 'c'" in log and "NaN" in log


def at_step(party, want_round, action, seen):
    if party.round == want_round:
        seen.append(1)
        if len(seen) == 2:
            action()


def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # a signal is handled between two bytecodes


def test_ctrl_c_stops_after_the_step_in_hand(toy, tmp_path):
    path, seen = tmp_path / "run", []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        start(toy, path, edit=faulty("b", "fit", lambda p: at_step(p, 2, press, seen)))
    assert caught.value.path == path and isinstance(caught.value, KeyboardInterrupt)
    assert len(seen) == 2  # the step in hand ended, the third of three did not begin
    assert signal.getsignal(signal.SIGINT) is handler
    ended = status(path)
    assert (ended["status"], ended["round"]) == ("interrupted", 1)
    assert toy.reports == [path] and visible(path) == ALL
    assert len(python_api.load(path).metrics) == 3
    assert latest_round(path / "checkpoints").round == 1


def test_a_second_ctrl_c_stops_at_once(toy, tmp_path):
    path, reached = tmp_path / "run", []

    def fault(party):
        press()
        reached.append("first")
        press()
        reached.append("second")

    with pytest.raises(Interrupted):
        start(toy, path, edit=faulty("a", "upload", fault))
    assert reached == ["first"] and status(path)["status"] == "interrupted"
    assert status(path)["round"] == 0 and toy.reports == [path]


def test_ctrl_c_between_two_parties_stops_before_the_next(toy, tmp_path):
    path, asked = tmp_path / "run", []

    def edit(parties):
        parties[0].fault["upload"] = lambda party: press()
        parties[1].fault["upload"] = lambda party: asked.append(1)

    with pytest.raises(Interrupted):
        start(toy, path, edit=edit)
    assert asked == []


def test_ctrl_c_while_parties_are_built_leaves_nothing(toy, tmp_path):
    with pytest.raises(Interrupted, match="nothing was written"):
        start(toy, tmp_path / "run", edit=lambda parties: press())
    assert visible(tmp_path) == [] and toy.reports == []


def test_ctrl_c_in_the_last_round_comes_too_late_to_lose_it(toy, tmp_path):
    class Late(Progress):
        def round_done(self, round, rounds):
            if round == rounds:
                press()

    run = start(toy, tmp_path / "run", progress=Late())
    assert run.status["status"] == "finished"


def test_models_are_exchanged_whole(toy, tmp_path):
    """A save that breaks in the second party leaves the earlier round's models of all."""
    path = tmp_path / "run"

    def edit(parties):
        real = parties[1].save

        def save(folder):
            if parties[1].round == 2:
                raise OSError("disk full")
            real(folder)

        parties[1].save = save

    with pytest.raises(OSError, match="disk full"):
        start(toy, path, edit=edit)
    assert visible(path) == ALL and visible(path / "models") == ["a", "b", "c"]
    assert status(path)["round"] == 1 and status(path)["reason"] == "OSError: disk full"


def test_a_base_is_written_once(toy, tmp_path):
    inodes = []

    class Look(Progress):
        def round_done(self, round, rounds):
            file = tmp_path / "run" / "models" / "a" / "base" / "config.json"
            inodes.append((file.stat().st_ino, file.stat().st_nlink))

    start(toy, tmp_path / "run", progress=Look())
    assert len(inodes) == 3 and len({inode for inode, _ in inodes}) == 1
    assert all(links == 1 for _, links in inodes)


def test_a_value_that_is_not_finite_is_null(toy, tmp_path):
    class Diverged(toy.Mean):
        def run(self, federation, recorder):
            for value in (float("nan"), float("inf"), torch.tensor(0.5)):
                recorder.metric(
                    round=1, party="a", phase="local", split="test", metric="loss", value=value
                )

    config = toy.config(rounds=1)
    run = run_algorithm(Diverged(config), config, tmp_path / "run", dump=toy.dump)
    assert [row["value"] for row in run.metrics] == [None, None, 0.5]
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_nothing_is_recorded_before_there_is_a_folder(toy, tmp_path):
    class Early(toy.Mean):
        def parties(self, recorder):
            recorder.log("reading")
            recorder.progress(party="a", step=1, steps=2, loss=3.0)
            with pytest.raises(RuntimeError, match="once all parties are built"):
                recorder.round_done(0)
            return super().parties(recorder)

    config = toy.config(rounds=1)
    run = run_algorithm(Early(config), config, tmp_path / "run", dump=toy.dump)
    assert "reading" in (run.path / "log.txt").read_text()


def test_load_names_what_it_expects(toy, tmp_path):
    with pytest.raises(InputError, match="expected a run folder"):
        python_api.load(tmp_path)
    run = start(toy, tmp_path / "run", rounds=1)
    with pytest.raises(InputError, match=r"party: 'x' has no model .* expected one of a, b, c"):
        run.party("x")
    assert python_api.load(str(run.path)).metrics == run.metrics
    assert "finished" in repr(run) and "a=0." in repr(run)
    assert "<td>a</td>" in run._repr_html_()


def test_a_line_cut_by_a_kill_is_passed_over(toy, tmp_path):
    run = start(toy, tmp_path / "run", rounds=1)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "par')
    assert len(run.metrics) == 3


def test_standard_output_is_left_to_the_command(toy, tmp_path, capsys):
    run = start(toy, tmp_path / "run", progress=LogProgress())
    shown = capsys.readouterr()
    assert shown.out == "" and "round 3/3 done" in shown.err
    assert run.report == tmp_path / "run" / "report.html"


@pytest.mark.parametrize("wait", [0.05, 0.11, 0.17, 0.23, 0.31])
def test_a_run_killed_at_any_moment_can_be_read(toy, tmp_path, wait):
    """kill -9, at five moments: whole lines, a whole checkpoint, the models of one round."""
    path = tmp_path / "run"
    child = os.fork()
    if child == 0:
        try:
            start(toy, path, rounds=100_000)
        finally:
            os._exit(0)
    try:
        while not latest_round(path / "checkpoints"):
            time.sleep(0.01)
        time.sleep(wait)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run = python_api.load(path)
    kept = latest_round(path / "checkpoints")
    assert run.status["status"] == "running"
    assert kept.round - run.status["round"] in (0, 1)
    assert run.metrics[-1]["round"] >= kept.round and len(run.traffic) >= 24 * kept.round
    assert run.parties == ("a", "b", "c")
    texts = [(path / "models" / n / "native" / "x.txt").read_text().split() for n in "abc"]
    saved = [[float(value) for value in text] for text in texts]
    rounds = [load_round(p) for p in sorted((path / "checkpoints").glob("round-*"))]
    assert saved in [[state[n]["x"].tolist() for n in "abc"] for state in rounds]


def test_a_run_may_leave_out_the_report_and_all_rounds_but_the_last(toy, tmp_path):
    run = start(toy, tmp_path / "run", report=False, keep="last")
    assert toy.reports == [] and run.status["round"] == 3
    assert visible(run.path / "checkpoints") == ["round-000003"]
    assert visible(run.path / "models") == ["a", "b", "c"]
    whole = start(toy, tmp_path / "whole")
    assert [row["value"] for row in run.metrics] == [row["value"] for row in whole.metrics]
    with pytest.raises(RunFailed):
        start(toy, tmp_path / "x", edit=faulty("b", "fit", raising(OSError("x"))), report=False)
    assert toy.reports == [whole.path]


def test_what_a_run_keeps_is_all_or_last(toy, tmp_path):
    with pytest.raises(ValueError, match='keep must be "all" or "last", got \'none\''):
        start(toy, tmp_path / "run", keep="none")
    assert visible(tmp_path) == []
