"""Split learning on aligned rows: vertical federated learning as it is mostly described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from python_api.algorithms.vertical.active import Stream
from python_api.algorithms.vertical.algorithm import Batch, Vertical

__all__ = ["ALIGNED_ONLY", "VflVanilla"]

# one linear head on the joined representations, nothing else
ALIGNED_ONLY: Mapping[str, object] = {
    "head": "linear",
    "rows": "aligned",
    "local": "none",
    "prior": "none",
    "select": "none",
    "gate": False,
    "l_ct": 0.0,
}


class VflVanilla(Vertical):
    """Cross-entropy of F(concat_m h_m), all steps on `batch_size` aligned rows (all of them, where
    there are fewer). Rows that one party holds alone are not used; at test all parties take part.

    A row that the active party shares with some of the others only counts as aligned; what the
    rest would have sent is 0.
    """

    name = "vfl_vanilla"
    switches: ClassVar[Mapping[str, object]] = ALIGNED_ONLY

    def batch(self) -> Batch:
        aligned: Stream = self.streams["aligned"]
        rows = aligned.take(self.server.config.train.batch_size)
        return self._batch(rows, rows[:0])
