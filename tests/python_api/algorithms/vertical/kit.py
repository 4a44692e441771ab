"""Gaussian classes cut into the columns of three parties, small enough for a round in no time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from python_api.algorithms import make
from python_api.config import load_config
from python_api.federation.local import LocalFederation
from python_api.federation.traffic import TrafficLog

from ..tiny import Recorder

CLASSES = ("ant", "bee", "cat")
PARTIES = ("bank", "shop", "spa")  # the first is active
COLUMNS = 3


class Log(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def write_tables(folder: Path, *, rows: int = 60, classes: int = 3) -> dict[str, Path]:
    """A CSV file per party: id, three columns, label. Row n is of class n % classes."""
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(classes, len(PARTIES), COLUMNS, generator=draw)
    paths = {}
    for m, party in enumerate(PARTIES):
        paths[party] = folder / f"{party}.csv"
        with paths[party].open("w", newline="") as file:
            write = csv.writer(file)
            write.writerow(["id", *(f"{party}{c}" for c in range(COLUMNS)), "kind"])
            for n in range(rows):
                x = centres[n % classes, m] + torch.randn(COLUMNS, generator=draw)
                write.writerow([f"p{n}", *(f"{v:.4f}" for v in x.tolist()), CLASSES[n % classes]])
    return paths


def config(
    folder: Path,
    algorithm: str = "proto_evfl",
    *,
    labelled: tuple[str, ...] = ("shop",),
    parties: tuple[str, ...] = PARTIES,
    data: dict[str, Any] | None = None,
    keys: dict[str, Any] | None = None,
    party: dict[str, dict[str, Any]] | None = None,
    rows: int = 60,
    **top: Any,
) -> Any:
    """labelled: the passive parties that read the label column of their own table."""
    paths = write_tables(folder, rows=rows)
    made: list[dict[str, Any]] = []
    for name in parties:
        each: dict[str, Any] = {"name": name, "table": str(paths[name]), "id": "id"}
        if name == PARTIES[0]:
            each["active"] = True
        elif name in labelled:
            each["label"] = "kind"
        made.append(each | (party or {}).get(name, {}))
    source = {
        "algorithm": algorithm,
        "seed": 3,
        "rounds": 2,
        "device": "cpu",
        "train": {"steps": 6, "batch_size": 8},
        "data": {"label": "kind", "overlap": 0.5} | (data or {}),
        "proto_evfl": keys or {},
        "defaults": {"model": {"hidden": [8], "out": 4}},
        "party": made,
    }
    return load_config(source | top)


class Federated:
    """An algorithm with its parties on the local engine."""

    def __init__(self, config: Any, *, change: Any = None) -> None:
        """change: takes the algorithm, once its parties are built, before there is a federation."""
        self.algorithm = make(config)
        self.recorder = Log()
        self.members = {p.name: p for p in self.algorithm.parties(self.recorder)}
        if change is not None:
            change(self.algorithm)
        self.traffic = TrafficLog()
        self.federation = LocalFederation(
            list(self.members.values()),
            self.algorithm.manifest(),
            traffic=self.traffic,
            seed=config.seed,
        )

    def run(self) -> Federated:
        self.algorithm.run(self.federation, self.recorder)
        return self

    def value(self, metric: str, *, party: str = PARTIES[0], round: int = 2) -> float:
        return self.recorder.value(party, metric, round=round, phase="global")
