"""Tiny federations for the tests: models of hidden 16 without pre-training, texts from a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from python_api.algorithms import make
from python_api.config import load_config
from python_api.federation.local import LocalFederation
from python_api.federation.traffic import TrafficLog

WORDS = ("red", "blue", "cold", "warm", "far", "near", "old", "new")


class Recorder:
    """What the runner hands to an algorithm, kept in lists."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.states: dict[int, dict[str, Any]] = {}
        self.steps: list[dict[str, Any]] = []

    def metric(self, **row: Any) -> None:
        self.rows.append(row)

    def progress(self, **step: Any) -> None:
        self.steps.append(step)

    def round_done(self, round: int, state: dict[str, Any]) -> None:
        copied = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
        self.states[round] = copied

    def log(self, text: str) -> None:
        pass

    def value(self, party: str, metric: str, *, round: int, phase: str) -> float:
        found = [
            row["value"]
            for row in self.rows
            if (row["party"], row["metric"], row["round"], row["phase"], row["split"])
            == (party, metric, round, phase, "test")
        ]
        return found[-1]


def write_task(folder: Path, name: str, *, classes: int = 2, rows: int = 24, shift: int = 0) -> str:
    """Rows of two words; the label is the first word's number modulo `classes`."""
    path = folder / f"{name}.jsonl"
    lines = []
    for n in range(rows):
        first, second = (n * 3 + shift) % len(WORDS), (n * 5 + 1) % len(WORDS)
        text = f"{WORDS[first]} {WORDS[second]}"
        lines.append(json.dumps({"text": text, "label": f"c{first % classes}"}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def party(folder: Path, name: str, *, task: dict[str, Any] | None = None, **keys: Any) -> dict:
    """One `[[party]]`; `model` keys beat the tiny llama."""
    model = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2, "pretrain": "none"}
    given = keys.pop("model", {})
    if isinstance(given, dict):
        given = model | given
    return {
        "name": name,
        "rank": 2,
        "model": given,
        "task": task
        or {
            "kind": "classification",
            "train": write_task(folder, name),
            "test": 0.25,
            "text": "text",
            "label": "label",
        },
    } | keys


def config(parties: list[dict], *, algorithm: str = "h2tune", h2tune: dict | None = None, **keys):
    source: dict[str, Any] = {
        "algorithm": algorithm,
        "seed": 3,
        "rounds": 2,
        "device": "cpu",
        "train": {"steps": 2, "batch_size": 4, "lr": 1e-2, "max_length": 32},
        "h2tune": {"middle_rank": 4} | (h2tune or {}),
        "party": parties,
    }
    train = keys.pop("train", {})
    source["train"] = source["train"] | train
    return load_config(source | keys)


class Federated:
    """An algorithm with its parties on the local engine."""

    def __init__(self, config: Any) -> None:
        self.algorithm = make(config)
        self.recorder = Recorder()
        self.parties = {p.name: p for p in self.algorithm.parties(self.recorder)}
        self.traffic = TrafficLog()
        self.federation = LocalFederation(
            list(self.parties.values()),
            self.algorithm.manifest(),
            traffic=self.traffic,
            seed=config.seed,
        )

    def run(self) -> Federated:
        self.algorithm.run(self.federation, self.recorder)
        return self
