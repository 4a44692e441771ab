"""The active party: it holds the labels, its own columns, and everything that joins the parties."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from python_api.algorithms.vertical.fusion import Fusion
from python_api.algorithms.vertical.party import EncoderParty
from python_api.federation.seeds import generator, seed_for
from python_api.models.bases import resolve_device

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig, RunConfig, VerticalPartyConfig
    from python_api.data.vertical import VerticalData

__all__ = ["ActiveParty", "Stream", "random_subset"]


class ActiveParty(EncoderParty):
    """The server's side of a vertical run; never behind the bus.

    Attributes:
        fusion: gate, fused head and local heads.
        present: per split (n, M) bool, which party holds each of its rows; M as in `parties`.
        y: per split (n,) int64, -1 without a label.
    """

    def __init__(
        self,
        party: VerticalPartyConfig,
        run: RunConfig,
        data: VerticalData,
        keys: ProtoEvflConfig,
    ) -> None:
        own = data.parties[party.name]
        self.labels, self.unseen = data.labels, data.unseen
        self.parties = tuple(data.parties)
        self.place = self.parties.index(party.name)
        classes = len(self.labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(run.seed, 0, party.name, "fusion"))
            fusion = Fusion(self.parties, party.name, classes, party.model.out, keys)
        self.fusion = fusion.to(resolve_device(party.device or run.device))
        super().__init__(party, run, own, classes)
        self.keys = keys
        self.y: dict[str, Tensor] = {}
        for part, split in self.splits.items():
            assert split.y is not None  # the active party always has labels
            self.y[part] = split.y
        self.present = {
            part: torch.zeros(len(split.ids), len(self.parties), dtype=torch.bool)
            for part, split in self.splits.items()
        }
        for bits in self.present.values():
            bits[:, self.place] = True

    def own_modules(self) -> list[nn.Module]:
        return [self.encoder, self.fusion]

    @property
    def seen(self) -> Tensor | None:
        """(C,) the classes that training may name; None if that is all of them."""
        if not self.unseen:
            return None
        mask = torch.ones(self.classes, dtype=torch.bool, device=self.device)
        mask[list(self.unseen)] = False
        return mask

    def aligned(self) -> Tensor:
        """(n_train,) bool: some other party holds the row too."""
        return self.present["train"].sum(1) > 1

    def save(self, folder: Path) -> None:
        super().save(folder)
        values = self._kept or self._parameters()
        fusion = {k.removeprefix("1."): v for k, v in values.items() if k.startswith("1.")}
        native = Path(folder) / "native"
        save_file({k: v.contiguous() for k, v in fusion.items()}, native / "fused.safetensors")

    def about(self) -> dict[str, object]:
        return {
            **super().about(),
            "active": True,
            "labels": list(self.labels),
            "parties": list(self.parties),
            "keys": json.loads(self.keys.model_dump_json()),
        }


class Stream:
    """Rows in shuffled passes without end; the order comes from (run seed, party, purpose)."""

    def __init__(self, rows: Tensor, *, seed: int, party: str, purpose: str) -> None:
        self.rows = rows
        self._draw = generator(seed, 0, party, purpose)
        self._order = self._passes()

    def __len__(self) -> int:
        return len(self.rows)

    def _passes(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.rows), generator=self._draw).tolist()

    def take(self, count: int) -> Tensor:
        """(min(count, n),) of the rows; none twice within one pass."""
        if not len(self.rows):
            return self.rows
        count = min(count, len(self.rows))
        return self.rows[torch.tensor([next(self._order) for _ in range(count)], dtype=torch.int64)]


def random_subset(present: Tensor) -> Tensor:
    """(B, M) a random part of the parties present, neither none nor, where there are two, all.

    Every party stays with probability 1/2; where none stayed one is drawn, where all did one goes.
    """
    draw, again = (torch.rand(present.shape, device=present.device) for _ in range(2))
    kept = present & (draw < 0.5)
    one = again.masked_fill(~present, -1.0).argmax(1)
    drawn = torch.nn.functional.one_hot(one, present.shape[1]).bool() & present
    kept = torch.where(kept.any(1, keepdim=True), kept, drawn)
    whole = (kept == present).all(1) & (present.sum(1) > 1)
    return torch.where(whole[:, None], kept & ~drawn, kept)
