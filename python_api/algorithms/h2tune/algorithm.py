"""H2Tune over the bus: what may cross it, and the rounds."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from python_api.algorithms.attendance import Attendance
from python_api.algorithms.base import EVALUATE, Algorithm, samples_valid
from python_api.algorithms.h2tune.middle import unpack_mask
from python_api.algorithms.h2tune.party import H2TuneParty
from python_api.algorithms.h2tune.server import Upload, first_shared, weights
from python_api.algorithms.h2tune.shared import SharedTensors
from python_api.algorithms.parties import make_parties
from python_api.errors import InputError
from python_api.federation.manifest import Manifest, OpRule, Rule
from python_api.federation.seeds import generator
from python_api.models.slots import SLOTS

if TYPE_CHECKING:
    from python_api.federation.bus import Federation, Party, Payload

__all__ = ["H2Tune"]


class H2Tune(Algorithm):
    """docs/algorithms.md, "H2Tune". The server holds no model and no data, only G."""

    name = "h2tune"

    def check(self) -> None:
        settings = self.config.h2tune
        self.check_min_replies()
        if settings.relation == "free" and settings.aggregate == "counts":
            raise InputError(
                'h2tune.aggregate: "counts" needs a relation without negative entries; '
                'expected aggregate = "mean" with relation = "free"'
            )
        if settings.share == "shuffled" and len(self.config.parties) < 2:
            raise InputError('h2tune.share: "shuffled" needs at least two parties, got 1')
        for party in self.config.parties:
            if party.rank > settings.middle_rank:
                raise InputError(
                    f"party.{party.name}.rank: {party.rank} is above h2tune.middle_rank = "
                    f"{settings.middle_rank}; expected at most that"
                )
            if not party.train.adapters:
                raise InputError(
                    f"party.{party.name}.adapters: h2tune shares the middle of adapters; "
                    "expected true"
                )

    def parties(self, recorder: Any) -> list[Party]:
        parties: list[H2TuneParty] = make_parties(
            self.config,
            cls=H2TuneParty,
            progress=functools.partial(recorder.progress, task="pretrain"),
        )
        bases = {p.name: p.base.hash for p in parties} if self._by_base else {}
        layers = {p.name: p.model.n_layers for p in parties}
        for group in self._groups(list(layers), bases):
            for party in parties:
                if party.name in group:
                    # the manifest's shapes speak of L*, which no party knows by itself
                    party.sizes["shared_layers"] = max(layers[name] for name in group)
        for party in parties:
            party.progress = recorder.progress
        return list(parties)

    def manifest(self) -> Manifest:
        settings = self.config.h2tune
        R = settings.middle_rank
        tensor = Rule(dtype=torch.float32, shape=("shared_layers", "slots", R, R))
        number = Rule(kind="number")
        told = {"slots": Rule(kind="text")}
        if self._by_base:
            told["base"] = Rule(kind="text", max_bytes=64)
        if settings.weight == "samples":
            told["samples"] = number
        return Manifest(
            {
                "describe": OpRule(up=told, valid=_description_valid),
                "download": OpRule(down={"shared": tensor}),
                "train_locally": OpRule(
                    down={"round": number},
                    up={"loss": Rule(kind="number", finite=False), "passes": number},
                ),
                "evaluate": EVALUATE,
                "upload": OpRule(
                    up={
                        "shared": tensor,
                        "relation": Rule(dtype=torch.float32, shape=("shared_layers", "layers")),
                        "omega": Rule(
                            dtype=torch.uint8,
                            shape=(lambda s: -(-s["layers"] * s["slots"] * R * R // 8),),
                        ),
                    }
                ),
            }
        )

    def run(self, federation: Federation, recorder: Any) -> None:
        server = self._start(federation, recorder)
        for round in range(1, self.config.rounds + 1):
            federation.round = round
            there = Attendance(federation, self.config.h2tune.min_replies or None)
            self._download(there, server)
            if self.evaluates(round):
                self.evaluate(there, recorder, round, "global")
            there.call("train_locally", {"round": round})
            if self.evaluates(round):
                self.evaluate(there, recorder, round, "local")
            state = self._update(federation, server, there.call("upload").ok)
            if round == self.config.rounds and self._by_base:
                last = Attendance(federation, self.config.h2tune.min_replies or None)
                self._download(last, server)
                self.evaluate(last, recorder, round, "global")
                there.failed |= last.failed
            recorder.round_done(round, state | there.state())

    # ---- private ----------------------------------------------------------------------------

    @property
    def _by_base(self) -> bool:
        """Whether only parties with the same frozen base share, and keep the aggregate."""
        return self.config.h2tune.basis in ("svd", "rotated")

    def _groups(self, names: list[str], bases: Mapping[str, str]) -> list[list[str]]:
        """Who shares one G: everybody, or the parties with the same frozen base."""
        if not self._by_base:
            return [names]
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(bases[name], []).append(name)
        if self.config.h2tune.share is not False and all(len(g) == 1 for g in groups.values()):
            raise InputError(
                f'h2tune.basis: "{self.config.h2tune.basis}" shares T among parties with the same '
                "frozen base, and no two parties have that; expected one [models] name or path for "
                "several parties, or share = false"
            )
        return list(groups.values())

    def _start(self, federation: Federation, recorder: Any) -> SharedTensors:
        settings, seed = self.config.h2tune, self.config.seed
        federation.round = 0
        told = federation.call("describe").ok
        self.slots = {n: tuple(SLOTS.index(s) for s in p["slots"]) for n, p in told.items()}
        samples = [int(p.get("samples", 1)) for p in told.values()]
        self.weights = dict(zip(told, weights(samples, rule=settings.weight), strict=True))
        self.evaluate(federation, recorder, 0, "local")
        groups = self._groups(list(told), {n: str(p.get("base", "")) for n, p in told.items()})
        start: dict[str, Tensor] = {}
        for group in groups:
            layers = max(federation.sizes[name]["layers"] for name in group)
            drawn = generator(seed, 0, "server", "middle")
            G = first_shared(layers, settings.middle_rank, generator=drawn)
            start |= dict.fromkeys(group, torch.zeros_like(G) if self._by_base else G)
        return SharedTensors(
            groups,
            self.slots,
            start,
            share=settings.share,
            rule=settings.aggregate,
            floor=settings.p_min,
        )

    def _download(self, to: Federation | Attendance, server: SharedTensors) -> None:
        round = to.round
        payloads: dict[str, Payload] = {}
        for name in to.parties:
            draw = generator(self.config.seed, round, name, "shuffle")
            shared = server.download(name, generator=draw, first=not server.updates)
            payloads[name] = {"shared": shared.contiguous()}
        to.call("download", payloads)

    def _update(
        self,
        federation: Federation,
        server: SharedTensors,
        replies: Mapping[str, Payload],
    ) -> dict[str, object]:
        """Aggregate the replies, whose weights count relative to each other; returns the round's
        state for the checkpoint and the report."""
        uploads: dict[str, Upload] = {}
        R = self.config.h2tune.middle_rank
        for name, reply in replies.items():
            sizes = federation.sizes[name]
            shape = (sizes["layers"], sizes["slots"], R, R)
            uploads[name] = Upload(
                shared=reply["shared"],
                relation=reply["relation"],
                mask=unpack_mask(reply["omega"], shape),
                slots=self.slots[name],
                weight=self.weights[name],
            )
        server.update(uploads)
        state: dict[str, object] = dict(server.state())
        for name, upload in uploads.items():
            state[f"P/{name}"] = upload.relation
            state[f"omega/{name}"] = _positions(upload.mask)
            state[f"slots/{name}"] = [SLOTS[m] for m in upload.slots]
        return state


def _description_valid(reply: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """Slots that the server can place, a hash, a number of rows; else what is wrong."""
    slots, base = reply["slots"], reply.get("base", "0" * 64)
    known = isinstance(slots, list) and set(slots) <= set(SLOTS)
    if not known or len(set(slots)) != len(slots) or len(slots) != sizes["slots"]:
        got = " ".join([slots] if isinstance(slots, str) else slots)
        return (
            f"entry 'slots': expected {sizes['slots']} names of {' '.join(SLOTS)}, each once, "
            f"got {got[:60]}"
        )
    if not isinstance(base, str) or not re.fullmatch("[0-9a-f]{64}", base):
        return "entry 'base': expected a sha256 of 64 hexadecimal digits"
    return samples_valid(reply, sizes)


def _positions(mask: Tensor) -> Tensor:
    """Places of the set entries, `(L, S, n)` int64; a matrix with fewer repeats its first one."""
    flat = mask.flatten(2)
    count = flat.sum(-1)
    order = flat.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[
        ..., : int(count.max())
    ]
    place = torch.arange(order.shape[-1])
    return torch.where(place < count[..., None], order, order[..., :1])
