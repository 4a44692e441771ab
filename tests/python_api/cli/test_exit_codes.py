"""What a run leaves on the screen: one path of a report, one line for an interrupt, the code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from python_api.cli import main

ROWS = "text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(40))
CONFIG = """
algorithm = "local"
rounds = {rounds}
[train]
steps = {steps}
max_length = 16
[[party]]
name = "a"
rank = 2
model = {{ hidden_size = 16, layers = 1, heads = 2, pretrain = {pretrain} }}
task = {{ train = "rows.csv", text = "text", label = "label" }}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path


def write(folder: Path, *, rounds: int = 1, steps: int = 1, pretrain: str = '"none"') -> None:
    text = CONFIG.format(rounds=rounds, steps=steps, pretrain=pretrain)
    (folder / "c.toml").write_text(text)


def interrupted_at(folder: Path, word: str, *, seconds: float = 15) -> tuple[int, str, str, float]:
    """Runs the command, presses Ctrl-C once `word` is on the screen; code, out, err, seconds."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    err = folder / "err"
    with err.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "python_api.cli", "run", "c.toml", "--out", "run"],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        end = time.monotonic() + 100
        while word not in err.read_text() and time.monotonic() < end:
            assert process.poll() is None, err.read_text()
            time.sleep(0.02)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=100)
    return process.returncode, out, err.read_text(), time.monotonic() - pressed


def test_a_run_prints_the_path_of_its_report_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder)
    assert main(["run", "c.toml", "--out", "run"]) == 0
    text = capsys.readouterr()
    assert (text.out + text.err).count("report.html") == 1
    assert text.out.splitlines()[-1] == "report: run/report.html"


def test_a_run_is_evaluated_and_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write(folder)
    assert main(["run", "c.toml", "--out", "run"]) == 0
    (folder / "new.csv").write_text("text,label\nt1,a\nt2,z\n")
    capsys.readouterr()
    assert main(["evaluate", "run", "a", "new.csv"]) == 2
    assert capsys.readouterr().err == "new.csv:3: label 'z'; expected one of a, b\n"
    assert main(["export", "run", "a", "--out", "deep/adapter"]) == 0
    kept = json.loads((folder / "deep" / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(kept["base_model_name_or_path"])
    PeftModel.from_pretrained(base, folder / "deep" / "adapter")
    assert main(["export", "run", "a", "--out", "deep/adapter"]) == 2


def test_ctrl_c_names_the_folder_and_its_report(folder: Path) -> None:
    write(folder, rounds=2, steps=100_000)
    code, out, err, _ = interrupted_at(folder, "train ")
    assert code == 130
    assert err.splitlines()[-1] == "interrupted; run can be read"
    assert out == "report: run/report.html\n"
    assert (folder / "run" / "report.html").is_file()


def test_ctrl_c_in_pre_training_leaves_nothing(folder: Path) -> None:
    write(folder, pretrain='{ text = "own", steps = 100000 }')
    code, out, err, took = interrupted_at(folder, "pretrain ")
    assert code == 130 and took < 20
    assert err.splitlines()[-1] == "stopped before the run began; nothing was written"
    assert out == "" and not (folder / "run").exists()
    assert not list((folder / "cache").rglob("*.safetensors"))


def test_the_readme_loads_an_adapter_with_vanilla_peft(folder: Path) -> None:
    import peft
    import transformers

    write(folder)
    path = folder / "c.toml"
    path.write_text(path.read_text().replace('name = "a"', 'name = "shop"'))
    assert main(["run", "c.toml", "--out", "runs/..."]) == 0
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in text.split("```python\n") if "PeftModel.from_pretrained(base" in b[:300])
    names = {"peft": peft, "transformers": transformers}
    exec(block.split("```")[0], names)
    assert len(names["tokenizer"]("t1").input_ids) and "shop/peft" in block
    assert any("lora_B" in name for name, _ in names["model"].named_parameters())
