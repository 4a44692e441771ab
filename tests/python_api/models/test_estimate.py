"""Predicted sizes against what is there, and predicted memory against a measured peak."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from python_api.config import load_config
from python_api.models.estimate import estimate, round_bytes
from tests.python_api.models.kit import adapted, tiny_base


def config_of(tmp_path, *, kind="llama", size=32, layers=2, algorithm="h2tune", **train):
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    party = {
        "name": "one",
        "rank": 4,
        "model": {"kind": kind, "hidden_size": size, "layers": layers, "heads": 4},
        "task": {"train": str(tmp_path / "rows.csv"), "text": "text", "label": "label"},
    }
    deep = party | {"name": "two", "modules": ["q", "v"]}
    deep = deep | {"model": party["model"] | {"layers": layers + 1}}
    source = {"algorithm": algorithm, "device": "cpu", "train": train, "party": [party, deep]}
    return load_config(source | ({"h2tune": {"middle_rank": 8}} if algorithm == "h2tune" else {}))


@pytest.mark.parametrize("kind", ["opt", "gpt2", "bert", "gemma"])
def test_counts_are_those_of_the_model(kind, tmp_path):
    run = config_of(tmp_path, kind=kind)
    found = estimate(run.parties[0], run, n_labels=3)
    model = adapted(kind)
    base = tiny_base(kind).model
    assert found.parameters == sum(p.numel() for p in base.parameters())
    assert found.base_bytes >= 4 * found.parameters
    assert found.adapter_parameters == sum(p.numel() for p in model.adapter_parameters())
    assert found.head_parameters == 3 * 32 + 3
    assert (found.layers, found.slots, found.encoder) == (2, model.slots, kind == "bert")


def test_memory_grows_with_rows_and_shrinks_with_checkpointing(tmp_path):
    def step(**train):
        run = config_of(tmp_path, layers=4, **train)
        return estimate(run.parties[0], run, n_labels=2).step_bytes

    assert 1.8 * step(batch_size=8) < step(batch_size=16) < 2.2 * step(batch_size=8)
    assert step(gradient_checkpointing=True) < 0.6 * step()
    assert step(precision="bfloat16") < 0.8 * step()


def test_bytes_of_a_round(tmp_path):
    run = config_of(tmp_path)
    sizes = {p.name: estimate(p, run, n_labels=2) for p in run.parties}
    found = round_bytes(sizes, run)
    # slots x L* x R^2 x 4; up also 4 L* L_k and slots L_k R^2 / 8.
    assert found["one"] == (7 * 3 * 64 * 4, 7 * 3 * 64 * 4 + 4 * 3 * 2 + 7 * 2 * 64 // 8)
    assert found["two"] == (2 * 3 * 64 * 4, 2 * 3 * 64 * 4 + 4 * 3 * 3 + 2 * 3 * 64 // 8)
    run = config_of(tmp_path, algorithm="local")
    sizes = {p.name: estimate(p, run, n_labels=2) for p in run.parties}
    assert round_bytes(sizes, run) == {"one": (0, 0), "two": (0, 0)}


def test_of_a_checkpoint_only_the_config_is_read(tmp_path):
    tiny_base("llama").save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    run = config_of(tmp_path)
    party = run.parties[0]
    party = party.model_copy(
        update={"model": party.model.model_copy(update={"path": str(tmp_path / "m")})}
    )
    found = estimate(party, run, n_labels=2)
    assert found.parameters == sum(p.numel() for p in tiny_base("llama").model.parameters())


MEASURE = """
import sys
import torch
from pathlib import Path
from python_api.models.adapted import AdaptedModel
from python_api.models.batching import Batch
from python_api.models.build import Base, build_config
from python_api.models.estimate import estimate
from python_api.models.pretrain import _finished, _fresh
from python_api.models.slots import find_slots
from tests.python_api.models.test_estimate import config_of

def memory(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(entry))

def train(kind, size, layers, rows, length):
    config, encoder = build_config(kind, hidden_size=size, layers=layers, heads=4)
    made = _finished(_fresh(config, 0, encoder=encoder), encoder=encoder)
    base = Base(made, None, encoder=encoder)
    sites = find_slots(base.model)
    model = AdaptedModel(base, sites, rank=4, alpha=8, n_labels=2, seed=0).train()
    T = torch.zeros(layers, len(model.slots), 4, 4, requires_grad=True)
    adamw = torch.optim.AdamW([*model.adapter_parameters(), *model.head_parameters(), T])
    for _ in range(2):
        ids = torch.randint(5, 261, (rows, length))
        model.set_middle(T)
        loss, logits = model.loss(Batch(ids, torch.ones_like(ids), torch.zeros(rows).long()))
        loss.backward()
        del loss, logits
        adamw.step()
        adamw.zero_grad()

kind, folder = sys.argv[1], Path(sys.argv[2])
run = config_of(folder, kind=kind, size=128, layers=4)
predicted = estimate(run.parties[0], run, n_labels=2).peak_bytes
train(kind, 32, 1, 2, 16)  # what libraries set up once
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
train(kind, 128, 4, 16, 128)
print(predicted, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_memory_is_within_30_percent_of_the_measured_peak(kind, tmp_path):
    env = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    predicted, measured = map(int, out.stdout.split())
    assert 0.7 * measured < predicted < 1.3 * measured, (predicted, measured)
