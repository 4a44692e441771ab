"""A passive party: its own columns and encoder; it sees no label of the active party."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from python_api.federation.bus import Party, Payload
from python_api.federation.seeds import seed_for
from python_api.models.bases import resolve_device
from python_api.models.encoder import build_encoder
from python_api.models.optimise import LocalOptimizer

if TYPE_CHECKING:
    from python_api.config import RunConfig, VerticalPartyConfig
    from python_api.data.vertical import PartyData, Split

__all__ = ["SPLITS", "EncoderParty", "PassiveParty"]

SPLITS = ("train", "validation", "test")


class EncoderParty(Party):
    """What the active and the passive parties share: rows, an encoder, its optimiser.

    A passive party's optimiser moves its encoder alone; `extra` adds parameters that it owns.
    """

    def __init__(
        self,
        party: VerticalPartyConfig,
        run: RunConfig,
        data: PartyData,
        classes: int,
    ) -> None:
        self.name, self.config, self.run, self.data = party.name, party, run, data
        self.device = resolve_device(party.device or run.device)
        self.classes, self.width = classes, party.model.out
        self.noise = run.data.noise if run.data is not None else 0.0
        seed = seed_for(run.seed, 0, self.name, "encoder")
        features = data.train.x.shape[1]
        self.encoder = build_encoder(party.model, features, seed=seed).to(self.device)
        self.splits: dict[str, Split] = {part: getattr(data, part) for part in SPLITS}
        self.sizes = {"out": self.width, "classes": classes}
        self.rows = {part: len(split.ids) for part, split in self.splits.items()}
        self.passes = 0
        self._kept: dict[str, Tensor] | None = None
        self.optimizer = self._optimizer()

    def own_modules(self) -> list[nn.Module]:
        """All that this party trains and keeps."""
        return [self.encoder]

    def _optimizer(self) -> LocalOptimizer:
        train = self.config.train
        params = [p for module in self.own_modules() for p in module.parameters()]
        return LocalOptimizer(
            [{"params": params, "lr": train.lr}],
            weight_decay=train.weight_decay,
            clip=train.clip,
            warmup=train.warmup,
            fused=True,
        )

    def encode(self, x: Tensor, *, noisy: bool = False, scale: float = 1.0) -> Tensor:
        """Representations (n, d); with input noise of `data.noise` standard deviations."""
        x = x.to(self.device)
        if noisy and self.noise:
            x = x + scale * self.noise * torch.randn_like(x)
        return self.encoder(x)

    # ---- keeping ----------------------------------------------------------------------------

    def keep(self, payload: Payload) -> Payload:
        """Bus op: remember the model as it is now, the one that `save` writes."""
        self._kept = self._parameters()
        return {}

    def _parameters(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": value.detach().cpu().clone()
            for number, module in enumerate(self.own_modules())
            for name, value in module.state_dict().items()
        }

    def _load(self, values: dict[str, Tensor]) -> None:
        for number, module in enumerate(self.own_modules()):
            start = f"{number}."
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
            )

    def state(self) -> dict[str, object]:
        return {
            "parameters": self._parameters(),
            "optimizer": self.optimizer.state(),
            "kept": self._kept,
            "passes": self.passes,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._load(state["parameters"])
        self.optimizer.load_state(state["optimizer"])
        self._kept = state["kept"]
        self.passes = int(state["passes"])

    def save(self, folder: Path) -> None:
        """`native/`: the encoder as safetensors, what it reads as `party.json`."""
        native = Path(folder) / "native"
        native.mkdir(parents=True, exist_ok=True)
        values = self._kept or self._parameters()
        encoder = {k.removeprefix("0."): v for k, v in values.items() if k.startswith("0.")}
        save_file({k: v.contiguous() for k, v in encoder.items()}, native / "encoder.safetensors")
        (native / "party.json").write_text(json.dumps(self.about(), indent=1), encoding="utf-8")

    def about(self) -> dict[str, object]:
        """What loading needs beside the tensors."""
        return {"name": self.name, "columns": self.data.columns.to_dict()}


class PassiveParty(EncoderParty):
    """A party without the active party's labels, behind the bus.

    Rows are named by their place in the sorted list of the active party's ids of a split, which
    `match` sends once; the party keeps where in its own table each stands.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places: dict[str, Tensor] = {}
        self._pending: Tensor | None = None
        self.own = torch.arange(len(self.splits["train"].ids))

    def match(self, payload: Payload) -> Payload:
        """Bus op: the active party's ids of one split; answers which of them are here.

        Ids travel in the clear. Of the training rows, those that nobody asks for are `own`.
        """
        part, ids = str(payload["split"]), payload["ids"]
        assert isinstance(ids, list)
        here = {id: place for place, id in enumerate(self.splits[part].ids)}
        places = torch.tensor([here.get(id, -1) for id in ids], dtype=torch.int64)
        self._places[part] = places
        if part == "train":
            alone = torch.ones(len(here), dtype=torch.bool)
            alone[places[places >= 0]] = False
            self.own = alone.nonzero()[:, 0]
        return {"present": places >= 0}

    def embed(self, payload: Payload) -> Payload:
        """Bus op: representations of training rows; their gradient comes with `backward`."""
        self.encoder.train()
        h = self.encode(self._take("train", payload["rows"]), noisy=True)
        self._pending = h
        return {"h": h.detach().cpu()}

    def backward(self, payload: Payload) -> Payload:
        """Bus op: the gradient of what `embed` sent last; one optimiser step."""
        if self._pending is None:
            raise RuntimeError("backward without the embed that it belongs to")
        grad = payload["grad"]
        assert isinstance(grad, Tensor)
        if grad.shape != self._pending.shape:
            raise ValueError(
                f"grad must be {tuple(self._pending.shape)}, the shape of what was sent, "
                f"got {tuple(grad.shape)}"
            )
        self._pending.backward(grad.to(self.device))
        self._pending = None
        self.optimizer.step()
        self.passes += 1
        return {}

    @torch.no_grad()
    def evaluate(self, payload: Payload) -> Payload:
        """Bus op: representations of rows of any split, without noise."""
        self.encoder.eval()
        return {"h": self.encode(self._take(str(payload["split"]), payload["rows"])).cpu()}

    def _take(self, part: str, rows: object) -> Tensor:
        assert isinstance(rows, Tensor)
        places = self._places[part][rows]
        if bool((places < 0).any()):
            raise ValueError(f"{part} rows that party {self.name!r} does not hold")
        return self.splits[part].x[places]
