"""FedIT: federated averaging of LoRA's two factors, for parties on one base."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from python_api.algorithms.attendance import Attendance
from python_api.algorithms.base import EVALUATE, Algorithm, samples_valid
from python_api.algorithms.baselines.plain import TRAIN, PlainParty
from python_api.algorithms.h2tune.server import weights
from python_api.algorithms.parties import make_parties
from python_api.errors import InputError
from python_api.federation.manifest import Manifest, OpRule, Rule

if TYPE_CHECKING:
    from python_api.federation.bus import Federation, Party, Payload

__all__ = ["FedIT", "FedITParty"]


class FedITParty(PlainParty):
    """A `PlainParty` whose A and B come and go as one flat vector; the head stays private."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sizes["adapters"] = sum(p.numel() for p in self.model.adapter_parameters())

    def flat(self) -> Tensor:
        """All of A, then all of B, float32 on the CPU."""
        parts = [p.detach().flatten() for p in self.model.adapter_parameters()]
        return torch.cat(parts).float().cpu()

    def download(self, payload: Payload) -> Payload:
        flat = payload["adapters"]
        assert isinstance(flat, Tensor)
        with torch.no_grad():
            for parameter in self.model.adapter_parameters():
                part, flat = flat[: parameter.numel()], flat[parameter.numel() :]
                parameter.copy_(part.view_as(parameter))
        return {}

    def upload(self, payload: Payload) -> Payload:
        sent: Payload = {"adapters": self.flat()}
        if self.run.h2tune.weight == "samples":
            sent["samples"] = len(self.train)
        return sent


class FedIT(Algorithm):
    """A and B averaged with the weights p_k of `h2tune.weight`; the aggregate is what is kept.

    Raises:
        InputError: the parties differ in base, rank, alpha or slots; the line names in what.
    """

    name = "fedit"

    def check(self) -> None:
        self.check_min_replies()

    def parties(self, recorder: Any) -> list[Party]:
        told = functools.partial(recorder.progress, task="pretrain")
        parties: list[FedITParty] = make_parties(self.config, cls=FedITParty, progress=told)
        first = parties[0]
        for party in parties:
            party.progress = recorder.progress
            for what, own, other in _traits(party, first):
                if own != other:
                    raise InputError(
                        f"party.{party.name}: fedit averages A and B of one base, but {what} is "
                        f"{own} where party.{first.name} has {other}"
                    )
        self.start = first.flat()  # what the server sends first, so that all begin alike
        return list(parties)

    def manifest(self) -> Manifest:
        flat = {"adapters": Rule(dtype=torch.float32, shape=("adapters",))}
        samples = {"samples": Rule(kind="number")}
        counted = self.config.h2tune.weight == "samples"
        return Manifest(
            {
                "download": OpRule(down=flat),
                "train_locally": TRAIN,
                "evaluate": EVALUATE,
                "upload": OpRule(up=flat | samples if counted else flat, valid=samples_valid),
            }
        )

    def run(self, federation: Federation, recorder: Any) -> None:
        shared, needed = self.start, self.config.h2tune.min_replies or None
        federation.round = 0
        self.evaluate(federation, recorder, 0, "local")
        for round in range(1, self.config.rounds + 1):
            federation.round = round
            there = Attendance(federation, needed)
            there.call("download", {"adapters": shared})
            if self.evaluates(round):
                self.evaluate(there, recorder, round, "global")
            there.call("train_locally", {"round": round})
            if self.evaluates(round):
                self.evaluate(there, recorder, round, "local")
            replies = there.call("upload")
            samples = [int(reply.get("samples", 1)) for reply in replies.ok.values()]
            p = weights(samples, rule=self.config.h2tune.weight)
            shared = replies.sum("adapters", weights=dict(zip(replies.ok, p, strict=True)))
            if round == self.config.rounds:
                last = Attendance(federation, needed)
                last.call("download", {"adapters": shared})
                self.evaluate(last, recorder, round, "global")
                there.failed |= last.failed
            recorder.round_done(round, {"adapters": shared} | there.state())


def _traits(party: FedITParty, first: FedITParty) -> list[tuple[str, object, object]]:
    def shapes(p: FedITParty) -> list[tuple[int, ...]]:
        return [tuple(x.shape) for x in p.model.adapter_parameters()]

    return [
        ("rank", party.model.rank, first.model.rank),
        ("alpha", party.model.alpha, first.model.alpha),
        ("the number of layers", party.model.n_layers, first.model.n_layers),
        ("modules", " ".join(party.model.slots), " ".join(first.model.slots)),
        ("the list of adapter shapes", shapes(party), shapes(first)),
        ("the frozen base (sha256)", party.base.hash[:12], first.base.hash[:12]),
    ]
