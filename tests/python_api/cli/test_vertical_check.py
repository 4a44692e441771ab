"""`fedkernels check`, `config` and `run` of tables by parties."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from python_api.check import check
from python_api.check_vertical import VerticalReport
from python_api.cli import main
from python_api.config import load_config
from python_api.config.settings import VERTICAL
from python_api.run import run

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "vertical"
CONFIG = """
algorithm = "proto_evfl"
rounds = 2
[data]
label = "y"
overlap = {overlap}
[[party]]
name = "bank"
active = true
table = "bank.csv"
id = "id"
[[party]]
name = "shop"
table = "shop.csv"
id = "id"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    rows = [(f"c{i}", draw.random(), draw.choice("pq"), "ab"[i % 2]) for i in range(200)]
    bank = "".join(f"{i},{x:.3f},{job},{y}\n" for i, x, job, y in rows)
    shop = "".join(f"{i},{draw.random():.3f},1\n" for i, *_ in rows)
    (tmp_path / "bank.csv").write_text(f"id,x,job,y\n{bank}")
    (tmp_path / "shop.csv").write_text(f"id,u,v\n{shop}")
    (tmp_path / "c.toml").write_text(CONFIG.format(overlap=1.0))
    return tmp_path


def test_check_says_what_is_joined_and_what_is_sent(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "c.toml", "--set", "rounds=3"]) == 0
    out = capsys.readouterr().out
    assert "proto_evfl, 3 rounds" in out and "passive" in out
    assert "ids: 200 in common, of which 40 test and 16 validation; 144 training ids" in out
    assert "1 number, 1 category: 3 inputs" in out and "mlp 3-64-32" in out
    assert "shop: v is constant in its training rows and left out" in out
    assert "Ids are matched in the clear" in out


def test_check_warns_of_what_is_never_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "data.test=0", "--set", "data.validation=0"]
    assert main(["check", "c.toml", *sets]) == 0
    err = capsys.readouterr().err
    assert "data.test: no test rows" in err and "data.validation: no validation rows" in err


@pytest.mark.parametrize(
    ("algorithm", "overlap"),
    [("proto_evfl", 1.0), *((name, 0.6) for name in (*VERTICAL, "centralised"))],
)
def test_the_bytes_of_a_round_are_those_that_travel(
    folder: Path, algorithm: str, overlap: float
) -> None:
    (folder / "c.toml").write_text(CONFIG.format(overlap=overlap))
    overrides = {"algorithm": algorithm, "train.batch_size": 8}
    config = load_config(folder / "c.toml", overrides)
    report = check(config)
    assert isinstance(report, VerticalReport)
    bank, shop = report.parties
    done = run("c.toml", out="run", overrides=overrides, report=False, progress=False)
    for op, direction, said in (
        ("embed", "up", shop.bytes_up),
        ("backward", "down", shop.bytes_down),
    ):
        sent = sum(
            row["bytes"]
            for row in done.traffic
            if (row["round"], row["op"], row["direction"]) == (2, op, direction)
        )
        assert abs(sent - said) <= 0.05 * said, (op, sent, said)
    assert bank.bytes_up == bank.bytes_down == 0


def test_bad_tables_and_keys_exit_2_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sets, words in (
        (["party.shop.id='ident'"], "party.shop.id"),
        (["data.labels=['a']"], "data.labels: 'a' alone"),
        (["party.shop.model.out=16"], "one width for all"),
        (["data.unseen=['a']"], "two or more"),
        (["party.shop.max_length=3"], "means nothing to tables"),
        (["proto_evfl.min_replies=9"], "proto_evfl.min_replies"),
        (["data.overlp=0.1"], "nearest known: overlap"),
    ):
        arguments = [part for item in sets for part in ("--set", item)]
        assert main(["run", "c.toml", "--out", "run", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
        assert not (folder / "run").exists()


def test_a_missing_device_is_a_warning_of_check_and_an_error_of_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    sets = ["--set", 'party.shop.device="cuda"']
    assert main(["check", "c.toml", *sets]) == 0
    assert "device cuda is not on this machine" in capsys.readouterr().err
    assert main(["run", "c.toml", "--out", "run", *sets]) == 2


def test_config_writes_a_file_that_runs_as_the_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "proto_evfl"]) == 0
    (folder / "f.toml").write_text(capsys.readouterr().out)
    assert load_config("f.toml") == load_config("proto_evfl")


def test_the_example_is_what_its_generator_writes_and_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("make_tables", EXAMPLE / "make_tables.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.main(tmp_path)
    for name in ("bank.csv", "shop.csv"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()
    arguments = ["--set", "rounds=1", "--out", str(tmp_path / "run")]
    assert main(["run", str(EXAMPLE / "vertical.toml"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "test accuracy, all parties together" in out and "shop" in out and "report:" in out
