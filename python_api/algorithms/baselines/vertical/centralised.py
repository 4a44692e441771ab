"""All tables in one place: an upper bound that gives up every promise of privacy."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from python_api.algorithms.vertical.active import ActiveParty
from python_api.algorithms.vertical.algorithm import Batch, Vertical
from python_api.algorithms.vertical.fusion import masked_softmax
from python_api.federation.manifest import Manifest
from python_api.federation.seeds import seed_for
from python_api.models.encoder import MLPEncoder, build_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from python_api.algorithms.vertical.party import PassiveParty
    from python_api.config import EncoderConfig, ProtoEvflConfig, RunConfig, VerticalPartyConfig
    from python_api.data.vertical import Split, VerticalData

__all__ = ["Joined", "VerticalCentralised", "pool"]


def pool(splits: Sequence[Split]) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """One split of all parties, joined by id: (ids, x (n, M, F), present (n, M), y (n,)).

    F is the widest party's number of columns; what is not there is 0. A row's label is that of the
    first party that has one; -1 without.
    """
    ids = tuple(dict.fromkeys(id for split in splits for id in split.ids))
    place = {id: row for row, id in enumerate(ids)}
    widest = max(split.x.shape[1] for split in splits)
    x = torch.zeros(len(ids), len(splits), widest)
    present = torch.zeros(len(ids), len(splits), dtype=torch.bool)
    y = torch.full((len(ids),), -1)
    for m, split in enumerate(splits):
        rows = torch.tensor([place[id] for id in split.ids], dtype=torch.int64)
        x[rows, m, : split.x.shape[1]] = split.x
        present[rows, m] = True
        if split.y is not None:
            y[rows] = torch.where(y[rows] < 0, split.y, y[rows])
    return ids, x, present, y


class Joined(nn.Module):
    """One perceptron on the columns of all parties and their presence bits; absent blocks are 0,
    the mean of a standardised column.

    Each hidden layer is as wide as those of the parties' encoders together. Images go through
    their party's convolutions first.
    """

    def __init__(
        self, models: Sequence[EncoderConfig], widths: Sequence[int], classes: int, *, seed: int
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.fronts = nn.ModuleList(
            build_encoder(model, width, seed=seed + m) if model.kind == "cnn" else nn.Identity()
            for m, (model, width) in enumerate(zip(models, widths, strict=True))
        )
        seen = sum(
            model.out if model.kind == "cnn" else width
            for model, width in zip(models, widths, strict=True)
        )
        hidden = tuple(map(sum, zip_longest(*(model.hidden for model in models), fillvalue=0)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rest = MLPEncoder(seen + len(models), hidden, classes)

    def logits(self, x: Tensor, present: Tensor) -> Tensor:
        """x (B, M, F), present (B, M) -> (B, C)."""
        there = present.to(x.dtype)
        blocks = [
            front(x[:, m, :width]) * there[:, m, None]
            for m, (front, width) in enumerate(zip(self.fronts, self.widths, strict=True))
        ]
        return self.rest(torch.cat([*blocks, there], 1))

    scores = logits

    def gates(self, x: Tensor, present: Tensor) -> Tensor:
        """(B, M, 1): nobody is weighed."""
        return masked_softmax(x.new_zeros(*present.shape, 1), present)


class Pool(ActiveParty):
    """The one place; it goes under the active party's name."""

    fusion: Any

    def __init__(
        self,
        party: VerticalPartyConfig,
        run: RunConfig,
        data: VerticalData,
        keys: ProtoEvflConfig,
    ) -> None:
        super().__init__(party, run, data, keys)
        self.labelled = int((self.y["train"] >= 0).sum())
        widths = [each.train.x.shape[1] for each in data.parties.values()]
        configs = {each.name: each for each in run.vertical_parties}
        models = [configs[name].model for name in data.parties]
        seed = seed_for(run.seed, 0, party.name, "joined")
        self.encoder = nn.Identity()
        self.fusion = Joined(models, widths, self.classes, seed=seed).to(self.device)
        self.x: dict[str, Tensor] = {}
        for part in self.splits:
            every = [getattr(each, part) for each in data.parties.values()]
            _, self.x[part], self.present[part], self.y[part] = pool(every)
        self.optimizer = self._optimizer()

    def save(self, folder: Path) -> None:
        native = Path(folder) / "native"
        native.mkdir(parents=True, exist_ok=True)
        values = self._kept or self._parameters()
        save_file({k: v.contiguous() for k, v in values.items()}, native / "joined.safetensors")
        about = {"name": self.name, "labels": list(self.labels), "parties": list(self.parties)}
        (native / "party.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


class VerticalCentralised(Vertical):
    """One network on the joined columns of all parties and on every label that any of them holds:
    aligned rows, the same with parties masked at random, and what one party alone holds. As many
    steps as the other algorithms take; metrics stand under the active party's name.

    Rows never cross the bus here: they lie in one process. Engines across organisations refuse it.
    """

    name = "centralised"
    server: Pool

    def build(self, data: VerticalData) -> list[PassiveParty]:
        self.data = data
        config = next(party for party in self.config.vertical_parties if party.active)
        self.server = Pool(config, self.config, data, self.keys)
        self.members = []
        self.place = {name: m for m, name in enumerate(data.parties)}
        self.best, self.sent = None, {}
        return self.members

    def manifest(self) -> Manifest:
        return Manifest({})

    def match(self) -> None:
        """Joined by id when the tables were read."""

    @property
    def labelled_rows(self) -> int:
        return self.server.labelled

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The rows' columns themselves, with noise."""
        x = self.server.encode(self.server.x["train"][batch.rows], noisy=True)
        return x, batch.present.to(x.device), {}

    def upper_loss(self, h: Tensor, present: Tensor, batch: Batch) -> Tensor:
        at = batch.aligned.to(h.device)
        more, kept = self.masked_copies(h, present, at)
        y = batch.y.to(h.device)
        x, there, y = torch.cat([h, more]), torch.cat([present, kept]), torch.cat([y, y[at]])
        logits = self.server.fusion.logits(x, there)
        seen = self.server.seen
        if seen is not None:
            # the active party's rows say nothing about a class that was taken out of them
            hidden = there[:, self.server.place, None] & ~seen.to(h.device)
            logits = logits.masked_fill(hidden, -torch.inf)
        return nn.functional.cross_entropy(logits, y)

    def represent(self, part: str) -> tuple[Tensor, Tensor]:
        device = self.server.device
        return self.server.x[part].to(device), self.server.present[part].to(device)

    def party_rows(self, part: str) -> list[tuple[str, str, str, float]]:
        return []

    def _pictures(self, looked: Any) -> dict[str, object]:
        return {}
