"""Run folders as COMMANDS.md writes them, made by hand: no training, no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from python_api.federation.checkpoint import save_round

SLOTS = ["q", "k", "v", "o", "gate", "up", "down"]
PARTIES = {"sentiment": (2, 4), "topic": (3, 8), "intent": (4, 6)}  # name: layers, rank
SHARED_LAYERS, MIDDLE_RANK = 4, 16
GAIN = {"sentiment": (0.51, 0.94), "topic": (0.26, 0.88), "intent": (0.125, 0.71)}

MANIFEST = [
    {
        "op": op,
        "direction": direction,
        "entry": entry,
        "kind": kind,
        "dtype": dtype,
        "shape": shape,
        "finite": True,
        "optional": False,
        "treatment": "plain",
    }
    for op, direction, entry, kind, dtype, shape in (
        ("download", "down", "G", "tensor", "float32", "(4, slots, 16, 16)"),
        ("train", "up", "loss", "number", "", ""),
        ("upload", "up", "G", "tensor", "float32", "(4, slots, 16, 16)"),
        ("upload", "up", "P", "tensor", "float32", "(4, layers)"),
        ("evaluate", "up", "accuracy", "number", "", ""),
        ("never_called", "up", "secret", "text", "", ""),
    )
]

CONFIG = """\
algorithm = "{algorithm}"
seed = 0
rounds = {rounds}
device = "cpu"

[train]
lr = 0.002

[h2tune]
middle_rank = 16
basis = "{basis}"
share = true
relation = "depth"
"""

PARTY = """
[[party]]
name = "{name}"
rank = {rank}
modules = "all"

[party.model]
kind = "llama"
hidden_size = 64
layers = {layers}

[party.task]
kind = "classification"
data = "builtin:{name}"
"""


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_rows(rounds: int, *, bonus: float = 0.0) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    clock = 1.5

    def add(at: int, party: str, phase: str, accuracy: float) -> None:
        for metric, value in (
            ("accuracy", accuracy),
            ("loss", 1.4 * (1 - accuracy)),
            ("macro_f1", 0.9 * accuracy),
        ):
            rows.append(
                {
                    "round": at,
                    "party": party,
                    "phase": phase,
                    "split": "test",
                    "metric": metric,
                    "value": round(value, 4),
                    "seconds": round(clock, 3),
                }
            )

    for party, (before, _) in GAIN.items():
        add(0, party, "local", before)
    for at in range(1, rounds + 1):
        for step, phase in enumerate(("global", "local")):
            clock += 3.0
            for party, (before, last) in GAIN.items():
                done = (at - 1 + 0.6 * step) / (rounds - 0.4)
                add(
                    at,
                    party,
                    phase,
                    min(1.0, before + (last + bonus - before) * done**0.5),
                )
    return rows


def traffic_rows(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    shared = SHARED_LAYERS * 7 * MIDDLE_RANK**2 * 4
    for at in range(rounds + 1):
        for party in PARTIES:
            exchanges = [("evaluate", "down", 0), ("evaluate", "up", 48)]
            if at:
                exchanges += [("download", "down", shared), ("train", "up", 16)]
            if 0 < at < rounds:
                exchanges.append(("upload", "up", shared + 400))
            for op, direction, size in exchanges:
                rows.append(
                    {
                        "round": at,
                        "party": party,
                        "op": op,
                        "direction": direction,
                        "bytes": size,
                        "wire_bytes": size + 180,
                    }
                )
    return rows


def server_state() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, object] = {
        "G": torch.randn(SHARED_LAYERS, 7, MIDDLE_RANK, MIDDLE_RANK, generator=generator)
    }
    for party, (layers, rank) in PARTIES.items():
        state[f"P/{party}"] = torch.softmax(
            2 * torch.randn(SHARED_LAYERS, layers, generator=generator), dim=0
        )
        scores = torch.rand(layers, 7, MIDDLE_RANK**2, generator=generator)
        state[f"omega/{party}"] = scores.topk(rank * rank).indices.sort().values
        state[f"slots/{party}"] = list(SLOTS)
    return state


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, ...)` writes a run folder and returns it."""

    def make(
        name: str = "h2tune",
        *,
        algorithm: str = "h2tune",
        basis: str = "trained",
        rounds: int = 5,
        status: str = "finished",
        last: int | None = None,
        reason: str | None = None,
        bonus: float = 0.0,
        metrics: bool = True,
        checkpoint: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        done = rounds if last is None else last
        parties = "".join(
            PARTY.format(name=party, layers=layers, rank=rank)
            for party, (layers, rank) in PARTIES.items()
        )
        (folder / "config.toml").write_text(
            CONFIG.format(algorithm=algorithm, basis=basis, rounds=rounds) + parties
        )
        state = {
            "status": status,
            "algorithm": algorithm,
            "round": done,
            "rounds": rounds,
            "started": "2026-11-24T09:00:00Z",
            "ended": None if status == "running" else "2026-11-24T09:00:40Z",
            "seconds": 40.2,
            "reason": reason,
        }
        (folder / "status.json").write_text(json.dumps(state))
        environment = {
            "packages": {"torch": "2.13.0"},
            "threads": 2,
            "manifest": MANIFEST if algorithm == "h2tune" else [],
            "sizes": {party: {"layers": layers} for party, (layers, _) in PARTIES.items()},
        }
        (folder / "environment.json").write_text(json.dumps(environment))
        rows = [row for row in metric_rows(rounds, bonus=bonus) if row["round"] <= done]
        write_jsonl(folder / "metrics.jsonl", rows if metrics else [])
        sent = [row for row in traffic_rows(rounds) if row["round"] <= done]
        write_jsonl(folder / "traffic.jsonl", sent if metrics and algorithm == "h2tune" else [])
        if checkpoint and metrics and algorithm == "h2tune":
            save_round(folder / "checkpoints", done, {"server": server_state()})
        return folder

    return make
