from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from python_api import progress as module
from python_api.progress import LogProgress, NotebookProgress, Progress, make_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: time.now)
    return time


def at(party="a", round=1, step=1, steps=10, loss=0.5, task="train"):
    return {
        "party": party,
        "round": round,
        "step": step,
        "steps": steps,
        "loss": loss,
        "task": task,
    }


def measured(party, metric, value):
    return {"party": party, "metric": metric, "split": "test", "value": value}


def test_share_and_time_left_by_hand(clock):
    shown = Progress()
    shown.start("run", rounds=4, parties=2)
    assert shown.share() == 0 and shown.seconds_left() is None
    shown.step(**at(round=0, task="pretrain"))
    assert shown.share() == 0 and shown.seconds_left() is None
    shown.step(**at(step=5))  # half of one of two parties' turns: a quarter of a round of four
    assert shown.share() == pytest.approx(1 / 16)
    clock.now += 10
    assert shown.seconds_left() == pytest.approx(150)
    shown.step(**at(step=10))
    shown.step(**at(party="b", step=10))
    assert shown.share() == pytest.approx(1 / 4)
    shown.step(**at(party="b", step=3, task="evaluate"))
    assert shown.share() == pytest.approx(1 / 4)
    shown.round_done(1, 4)
    assert shown.share() == pytest.approx(1 / 4)
    shown.step(**at(round=2, step=10))
    assert shown.share() == pytest.approx(3 / 8)
    shown.round_done(4, 4)
    assert shown.share() == 1 and shown.seconds_left() == 0


def test_a_log_holds_plain_lines_and_not_too_many(clock):
    stream = io.StringIO()
    shown = LogProgress(stream, every=10)
    shown.start("h2tune, seed 0", rounds=2, parties=1)
    for step in range(1, 101):
        clock.now += 1
        shown.step(**at(step=step, steps=100))
    shown.metric(measured("a", "accuracy", 0.8125))
    shown.metric(measured("a", "loss", 3.0))
    shown.round_done(1, 2)
    clock.now += 100
    shown.round_done(2, 2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "h2tune, seed 0"
    assert lines[1] == "round 1/2  a  train 1/100  loss 0.5"
    assert lines[2] == "round 1/2  a  train 11/100  loss 0.5  2:52 left"
    assert 10 <= len(lines) <= 14
    assert lines[-1] == "round 2/2 done  a 0.812"
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_a_notebook_gets_one_display_that_is_replaced(clock):
    pages = []
    handle = SimpleNamespace(update=lambda page: pages.append(page))

    def display(page, *, display_id):
        assert display_id is True
        pages.append(page)
        return handle

    shown = NotebookProgress(display, every=0.5)
    shown.start("<run>", rounds=1, parties=1)
    for step in range(1, 11):
        clock.now += 0.1
        shown.step(**at(step=step))
    shown.round_done(1, 1)
    shown.stop()
    assert pages[0]._repr_html_() == "<pre>&lt;run&gt;</pre>"
    assert any("train" in repr(page) for page in pages)
    assert repr(pages[-1]) == "<run>\nround 1/1 done" and len(pages) < 8


def test_the_terminal_shows_both_bars_and_leaves_the_rounds(monkeypatch):
    from rich.console import Console

    stream = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **_: Console(file=stream, force_terminal=True, width=100, color_system=None),
    )
    shown = module.TerminalProgress()
    shown.start("h2tune", rounds=1, parties=1)
    shown.step(**at(party="shop", step=3))
    shown._bars.refresh()
    shown.metric(measured("shop", "accuracy", 0.5))
    shown.round_done(1, 1)
    shown.stop()
    shown.stop()
    text = stream.getvalue()
    assert "h2tune" in text and "shop  train" in text and "3/10  loss 0.5" in text
    assert "round 1/1 done  shop 0.500" in text


def test_the_choice_fits_the_place(monkeypatch):
    assert type(make_progress(False)) is Progress and type(make_progress("none")) is Progress
    own = Progress()
    assert make_progress(own) is own
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(make_progress()) is LogProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert type(make_progress(True)) is module.TerminalProgress

    class ZMQInteractiveShell:
        pass

    ipython = SimpleNamespace(
        get_ipython=ZMQInteractiveShell, display=SimpleNamespace(display=print)
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert type(make_progress()) is NotebookProgress
    with pytest.raises(ValueError, match="progress must be one of none, log, terminal, notebook"):
        make_progress("loud")
