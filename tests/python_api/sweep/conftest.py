"""A config of two parties that is quick to resolve, and a runner that makes up what it records."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROWS = "text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(40))
PARTY = """
[[party]]
name = "{name}"
rank = 2
model = {{ hidden_size = 16, layers = 1, heads = 2, pretrain = "none" }}
task = {{ train = "rows.csv", text = "text", label = "label" }}
"""
TABLES = """
algorithm = "proto_evfl"
rounds = 2
[data]
label = "kind"
[[party]]
name = "left"
active = true
table = "left.csv"
id = "id"
[[party]]
name = "right"
table = "right.csv"
id = "id"
"""
GRID = """
seed = [0, 1]
[[row]]
name = "plain"
[[row]]
name = "fast"
set = { "train.lr" = 1e-2 }
"""


def metric(party, name, value, *, round=1, split="test", phase="local"):
    return {
        "round": round,
        "party": party,
        "phase": phase,
        "split": split,
        "metric": name,
        "value": value,
        "seconds": 0.1,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with rows.csv, c.toml and grid.toml in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.csv").write_text(ROWS)
    head = 'algorithm = "local"\nrounds = 1\n[train]\nsteps = 1\nmax_length = 16\n'
    (tmp_path / "c.toml").write_text(head + PARTY.format(name="a") + PARTY.format(name="b"))
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


@pytest.fixture
def tables(folder):
    """t.toml, whose runs take no models of language: the processes of a pool start sooner."""
    draw = random.Random(0)
    for name, label in (("left", ",kind"), ("right", "")):
        rows = [f"{n},{draw.gauss(n % 2, 1):.3f}" + f",{n % 2}" * bool(label) for n in range(60)]
        (folder / f"{name}.csv").write_text("\n".join([f"id,x{label}", *rows]) + "\n")
    (folder / "t.toml").write_text(TABLES)
    return folder


@pytest.fixture
def runner(monkeypatch):
    """In place of `run`: accuracy 0.5 + 0.1 seed for a, 0.1 more at a higher rate; counts calls.

    `fails`: (rate, seed) of runs that raise, `stops`: of runs in which the user presses Ctrl-C.
    """
    state = SimpleNamespace(calls=[], fails=set(), stops=set(), metric="accuracy")

    def run(source, *, out, overrides, **options):
        rate, seed = overrides.get("train.lr", 1e-3), overrides["seed"]
        state.calls.append((rate, seed))
        state.options = options
        Path(out).mkdir(parents=True, exist_ok=True)
        if (rate, seed) in state.fails:
            raise ZeroDivisionError("no\nrows")
        if (rate, seed) in state.stops:
            raise KeyboardInterrupt
        value = 0.5 + 0.1 * seed + (0.1 if rate == 1e-2 else 0.0)
        rows = [metric("a", state.metric, 0.5, round=0), metric("b", state.metric, 0.4, round=0)]
        rows += [metric("a", state.metric, value), metric("b", state.metric, value - 0.3)]
        rows += [metric("a", "passes", 70, split="train"), metric("b", "passes", 30, split="train")]
        traffic = [{"op": "upload", "bytes": 2_000_000}, {"op": "evaluate", "bytes": 9}]
        return SimpleNamespace(metrics=rows, traffic=traffic, status={"algorithm": "local"})

    monkeypatch.setattr(sys.modules["python_api.run"], "run", run)
    return state
