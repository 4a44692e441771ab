"""The active party alone: what vertical federated learning has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from python_api.algorithms.baselines.vertical.vanilla import ALIGNED_ONLY
from python_api.algorithms.vertical.algorithm import Batch, Vertical
from python_api.federation.manifest import Manifest

if TYPE_CHECKING:
    from python_api.algorithms.vertical.party import PassiveParty
    from python_api.data.vertical import VerticalData

__all__ = ["VflLocal"]


class VflLocal(Vertical):
    """The active party's encoder and a linear head, on all its labelled rows, with as many steps
    as the other algorithms take. Nothing is sent; a config of one party will do.

    The tables of the other parties are read all the same, so that test rows are the same ones.
    """

    name = "vfl_local"
    switches: ClassVar[Mapping[str, object]] = ALIGNED_ONLY

    def build(self, data: VerticalData) -> list[PassiveParty]:
        alone = {name: party for name, party in data.parties.items() if party.active}
        return super().build(replace(data, parties=alone))

    def manifest(self) -> Manifest:
        return Manifest({})

    def batch(self) -> Batch:
        rows = self.streams["own"].take(self.server.config.train.batch_size)
        return self._batch(rows[:0], rows)
