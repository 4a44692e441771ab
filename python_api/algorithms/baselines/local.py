"""Every party alone: what a federation has to beat."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from python_api.algorithms.base import EVALUATE, Algorithm
from python_api.algorithms.baselines.plain import TRAIN, PlainParty
from python_api.algorithms.parties import make_parties
from python_api.federation.manifest import Manifest

if TYPE_CHECKING:
    from python_api.federation.bus import Federation, Party

__all__ = ["Local"]


class Local(Algorithm):
    """LoRA of the party's rank on the party's own data. Only its metrics travel."""

    name = "local"

    def parties(self, recorder: Any) -> list[Party]:
        told = functools.partial(recorder.progress, task="pretrain")
        parties: list[PlainParty] = make_parties(self.config, cls=PlainParty, progress=told)
        for party in parties:
            party.progress = recorder.progress
        return list(parties)

    def manifest(self) -> Manifest:
        return Manifest({"train_locally": TRAIN, "evaluate": EVALUATE})

    def run(self, federation: Federation, recorder: Any) -> None:
        federation.round = 0
        self.evaluate(federation, recorder, 0, "local")
        for round in range(1, self.config.rounds + 1):
            federation.round = round
            federation.call("train_locally", {"round": round})
            if self.evaluates(round):
                self.evaluate(federation, recorder, round, "local")
            recorder.round_done(round, {})
