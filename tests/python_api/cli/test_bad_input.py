"""Exit codes, one line on standard error, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from python_api.cli import main
from python_api.config import load_config

ROWS = "text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20))
PARTY = """
[[party]]
name = "{name}"
rank = {rank}
model = {model}
task = {{ train = "rows.csv", text = "text", label = "label"{more} }}
"""
TINY = '{ hidden_size = 16, layers = 1, heads = 2, pretrain = "none" }'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path


def config(
    folder: Path,
    *,
    head: str = "",
    names: tuple[str, ...] = ("a",),
    rank: int = 2,
    model: str = TINY,
    more: str = "",
) -> str:
    parties = "".join(PARTY.format(name=n, rank=rank, model=model, more=more) for n in names)
    path = folder / "c.toml"
    path.write_text(f'algorithm = "h2tune"\nrounds = 1\n{head}\n{parties}')
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str]) -> str:
    before = sorted(folder.rglob("*"))
    assert main(arguments) == 2
    text = capsys.readouterr()
    assert text.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return text.err


@pytest.mark.parametrize("command", ["run", "check"])
def test_what_a_config_gets_wrong(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(**keys: object) -> str:
        return one_line(capsys, folder, [command, config(folder, **keys)])  # type: ignore[arg-type]

    assert "nearest known: middle_rank" in said(head="[h2tune]\nmidle_rank = 4")
    assert "before the first [table]" in said(head="[train]\nrounds = 4")
    assert "'a' is taken by party 1" in said(names=("a", "a"))
    assert "reserved" in said(names=("server",))
    assert "rank: 32 is above h2tune.middle_rank = 16" in said(rank=32)
    assert "'gat'; nearest known: gate" in said(head='[defaults]\nmodules = ["gat"]')
    assert "2 does not divide hidden_size = 15" in said(model="{ hidden_size = 15, heads = 2 }")
    (folder / "empty").mkdir(exist_ok=True)
    assert "no config.json" in said(model='{ path = "./empty" }')
    assert "is no folder" in said(model='{ path = "./none" }')
    (folder / "test.csv").write_text("text,label\nx,a\ny,c\n")
    assert "test.csv:3: label 'c' is only in the test rows" in said(more=', test = "test.csv"')
    assert "none.csv: no such file" in said(more=', test = "none.csv"')
    (folder / "rows.csv").write_text("")
    assert "rows.csv: is empty" in said()
    (folder / "rows.csv").unlink()
    (folder / "rows.csv").write_text("txt,label\nx,a\n")
    assert "rows.csv:2: no column 'text'; found txt, label" in said()


def test_what_the_command_line_gets_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["run", "h2tun"], "nearest known: h2tune"),
        (["run", "none.toml"], "no such file"),
        (["run", "h2tune", "--set", "rank"], "KEY=VALUE"),
        (["run", "h2tune", "--set", "h2tune.share=shuffled"], "needs quotes"),
        (["run", "h2tune", "--set", "party.shop.rank=2"], "expected one of sentiment"),
        (["config", "h2tun"], "nearest known: h2tune"),
        (["predict", "none", "a", "rows.csv"], "expected a run folder"),
        (["frobnicate"], "frobnicate"),
        (["run", "h2tune", "--devise", "cpu"], "--devise"),
    ):
        assert words in one_line(capsys, folder, arguments)


def test_config_prints_what_run_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["config"], ["config", "fedit", "--explain"]):
        assert main(arguments) == 0
        (folder / "f.toml").write_text(capsys.readouterr().out)
        assert load_config(folder / "f.toml") == load_config([*arguments, "h2tune"][1])


def test_check_prints_parties_basis_and_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", config(folder, names=("a", "b"))]) == 0
    text = capsys.readouterr().out
    assert 'basis "trained"' in text and "llama 16x1" in text
    assert "7.2 kB" in text  # 7 slots x 1 layer x 16^2 x 4 bytes
    assert not (folder / "runs").exists()


def test_what_only_this_machine_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in ("run", "bench", "check-kernels"):
        arguments = [config(folder)] if command == "run" else ["triple_lora"]
        said = one_line(capsys, folder, [command, *arguments, "--device", "cuda"])
        assert said == "device: cuda is asked for, but torch sees no CUDA device\n"
    place = folder / "pickled"
    place.mkdir()
    sizes = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 3}
    (place / "config.json").write_text(json.dumps(sizes))
    (place / "pytorch_model.bin").write_bytes(b"x")
    path = config(folder, model='{ path = "./pickled" }')
    assert "pytorch_model.bin is pickled; convert it" in one_line(capsys, folder, ["run", path])
    assert "party.a: `embed_dim` must be divisible" in one_line(capsys, folder, ["check", path])
    (place / "config.json").write_text(json.dumps(sizes | {"n_head": 2}))
    assert main(["check", path]) == 0
    assert "holds no *.safetensors" in capsys.readouterr().err


def test_settings_that_would_silently_do_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = "party.a.task.test: no test rows; a is trained and never measured on a test split"
    path = config(folder, more=", test = 0")
    assert main(["check", path]) == 0
    assert f"warning: {empty}" in capsys.readouterr().err
    assert main(["run", path, "--out", "one", "--set", "party.a.steps=1"]) == 0
    assert f"warning: {empty}" in (folder / "one" / "log.txt").read_text()
    environment = json.loads((folder / "one" / "environment.json").read_text())
    assert environment["rows"] == {"a": {"train": 18, "validation": 2, "test": 0}}

    path = config(folder, names=("a", "b"))
    apart = ["--set", 'party.a.modules=["q", "o"]', "--set", 'party.b.modules=["v"]']
    line = "no module slot in common with another: a has q o; b has v"
    capsys.readouterr()
    assert main(["check", path, *apart]) == 0
    assert capsys.readouterr().err.count(line) == 1
    assert main(["run", path, "--out", "two", "--set", "defaults.steps=1", *apart]) == 0
    assert (folder / "two" / "log.txt").read_text().count(line) == 1
    for free in (["--set", "h2tune.share=false", *apart], ["--set", 'defaults.modules=["q"]']):
        capsys.readouterr()
        assert main(["check", path, *free]) == 0
        assert "in common" not in capsys.readouterr().err
    nonsense = TINY.replace("heads = 2,", "heads = 2, config = { hiden_act = 1 },")
    for command in ("check", "run"):
        said = one_line(capsys, folder, [command, config(folder, model=nonsense)])
        assert said == (
            "party.a: model.config.hiden_act: LlamaConfig has no such key; nearest known: "
            "hidden_act\n"
        )
