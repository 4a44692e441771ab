"""A toy algorithm, small enough to follow by hand: three parties agree on the mean of vectors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from python_api.algorithms.base import Algorithm
from python_api.config.schema import RunConfig
from python_api.federation import LocalFederation, Manifest, OpRule, Party, Rule, TrafficLog

VECTOR = Rule(dtype=torch.float32, shape=("dim",))
MANIFEST = Manifest(
    {
        "download": OpRule(down={"mean": VECTOR}),
        "fit": OpRule(up={"loss": Rule(kind="number")}),
        "upload": OpRule(up={"x": VECTOR}),
        "evaluate": OpRule(up={"distance": Rule(kind="number")}),
    }
)


class MeanParty(Party):
    """Walks from its own vector towards the mean, with noise from torch's global stream."""

    def __init__(self, name, start, recorder=None, steps=3):
        self.name = name
        self.x = torch.full((4,), float(start))
        self.mean = torch.zeros(4)
        self.sizes = {"dim": 4}
        self.recorder = recorder
        self.steps = steps
        self.round = 0
        self.fault = {}  # op -> what happens instead

    def _turn(self, op):
        if op in self.fault:
            return self.fault[op](self)
        return None

    def download(self, payload):
        self.mean = payload["mean"]
        self.round += 1
        return {}

    def fit(self, payload):
        for step in range(1, self.steps + 1):
            self._turn("fit")
            self.x = self.x + 0.5 * (self.mean - self.x) + 0.01 * torch.randn(4)
            loss = float((self.x - self.mean).square().mean())
            if self.recorder:
                self.recorder.progress(
                    party=self.name, round=self.round, step=step, steps=self.steps, loss=loss
                )
        return {"loss": loss}

    def upload(self, payload):
        return self._turn("upload") or {"x": self.x}

    def evaluate(self, payload):
        return self._turn("evaluate") or {"distance": float((self.x - self.mean).norm())}

    def state(self):
        return {"x": self.x, "mean": self.mean, "round": self.round}

    def load_state(self, state):
        self.x, self.mean, self.round = state["x"], state["mean"], state["round"]

    def save(self, folder):
        (Path(folder) / "native").mkdir()
        (Path(folder) / "native" / "x.txt").write_text(" ".join(map(str, self.x.tolist())))
        if not (Path(folder) / "base").exists():
            (Path(folder) / "base").mkdir()
            (Path(folder) / "base" / "config.json").write_text("{}")


class Mean(Algorithm):
    def __init__(self, config, *, min_replies=None, edit=lambda parties: None):
        super().__init__(config)
        self.min_replies, self.edit = min_replies, edit

    def parties(self, recorder):
        self.members = [
            MeanParty(party.name, start, recorder)
            for start, party in enumerate(self.config.parties, 1)
        ]
        self.edit(self.members)
        return self.members

    def manifest(self):
        return MANIFEST

    def run(self, federation, recorder):
        mean = torch.zeros(4)
        for t in range(1, self.config.rounds + 1):
            federation.round = t
            federation.call("download", {"mean": mean})
            federation.call("fit")
            replies = federation.call("upload", min_replies=self.min_replies)
            mean = replies.sum("x") / len(replies.ok)
            measured = federation.call("evaluate", to=list(replies.ok))
            for name, reply in measured.ok.items():
                recorder.metric(
                    round=t,
                    party=name,
                    phase="local",
                    split="test",
                    metric="accuracy",
                    value=1 / (1 + reply["distance"]),
                )
            recorder.round_done(t, {"mean": mean})


@pytest.fixture
def toy(monkeypatch):
    """MeanParty, Mean, the manifest, and makers of a federation and a config of three parties."""
    written = []
    monkeypatch.setattr("python_api.report.write_report", lambda folder: written.append(folder))

    def federation(seed=0, **options):
        parties = [MeanParty(name, start) for start, name in enumerate("abc", 1)]
        return LocalFederation(parties, MANIFEST, traffic=TrafficLog(), seed=seed, **options), {
            party.name: party for party in parties
        }

    def config(**changes):
        names = [SimpleNamespace(name=name) for name in "abc"]
        built_in = dict(RunConfig(algorithm="mean", rounds=3))
        return SimpleNamespace(**built_in | {"setting": "tuning", "parties": names} | changes)

    return SimpleNamespace(
        MeanParty=MeanParty,
        Mean=Mean,
        manifest=MANIFEST,
        federation=federation,
        config=config,
        dump=lambda config: f'algorithm = "{config.algorithm}"\nrounds = {config.rounds}\n',
        reports=written,
    )
