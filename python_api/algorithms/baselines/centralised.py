"""All data in one place: an upper bound that gives up every promise of privacy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from python_api.algorithms.base import EVALUATE, Algorithm
from python_api.algorithms.baselines.plain import accumulate, sweeps, total_sweeps
from python_api.algorithms.finetune import FineTuneParty
from python_api.federation.manifest import Manifest
from python_api.federation.seeds import generator, seed_for
from python_api.models.bases import load_bases

if TYPE_CHECKING:
    from python_api.config import PartyConfig
    from python_api.data.task import TaskData
    from python_api.federation.bus import Federation, Party
    from python_api.models.build import Base

__all__ = ["Centralised"]


class Centralised(Algorithm):
    """One model for everybody, trained on the union of the parties' data.

    The parties have different tasks and models, so "one model" means: the model of the party whose
    base has the most parameters (decoders only, where some party generates), with its rank, alpha
    and modules; one adapter A, B shared by all tasks; and one head for each party's classes. A step
    takes one macro-batch of one party, in an order drawn anew every round; the number of passes is
    the sum of what the parties would make alone. The adapter learns with the largest party's rates,
    each head with its own party's. Metrics stand under each party's name.

    Data and gradients never cross the bus here: training runs in this process, over all parties.
    Engines across organisations refuse it.
    """

    name = "centralised"

    def parties(self, recorder: Any) -> list[Party]:
        from python_api.data.task import load_task

        run = self.config
        data = {p.name: load_task(p.task, seed=run.seed, party=p.name) for p in run.parties}
        told = functools.partial(recorder.progress, task="pretrain")
        largest, base = self._largest(data, told)
        taken = ("model", "rank", "alpha", "modules", "slots", "device")
        update = {name: getattr(largest, name) for name in taken}
        self.members = [
            FineTuneParty(p.model_copy(update=update), run, base, data[p.name]) for p in run.parties
        ]
        for party in self.members:
            party.check_train()
        self.holder = next(p for p in self.members if p.name == largest.name)
        self._tie()
        self.steps = [party.steps_per_round for party in self.members]
        heads = [group for p in self.members for group in p.groups(adapters=False)]
        self.optimizer = self.holder.make_optimizer(
            "central", self.holder.groups(head=False) + heads
        )
        self.optimizer.total = total_sweeps(run) * sum(self.steps)
        return list(self.members)

    def manifest(self) -> Manifest:
        return Manifest({"evaluate": EVALUATE})

    def run(self, federation: Federation, recorder: Any) -> None:
        federation.round = 0
        self.evaluate(federation, recorder, 0, "local")
        for round in range(1, self.config.rounds + 1):
            federation.round = round
            self._train(round, recorder)
            if self.evaluates(round):
                self.evaluate(federation, recorder, round, "local")
            recorder.round_done(round, {})

    def _train(self, round: int, recorder: Any) -> None:
        seed, number = self.config.seed, 0
        order = [m for m, steps in enumerate(self.steps) for _ in range(steps)]
        total = sweeps(self.config, round) * len(order)
        draw = generator(seed, round, "all", "order")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, round, "all", "train"))
            for _ in range(sweeps(self.config, round)):
                batches = [party.macro_batches(round) for party in self.members]
                for place in torch.randperm(len(order), generator=draw).tolist():
                    party = self.members[order[place]]
                    party.model.train()
                    loss = accumulate(party, next(batches[order[place]]))
                    self._step(party)
                    number += 1
                    recorder.progress(
                        party=party.name, round=round, step=number, steps=total, loss=loss
                    )

    def _step(self, party: FineTuneParty) -> None:
        """Move the gradient of one party's batch onto the parameters that are optimised; step."""
        if party is not self.holder:
            own = party.model.adapter_parameters()
            for mine, theirs in zip(self.holder.model.adapter_parameters(), own, strict=True):
                mine.grad, theirs.grad = theirs.grad, None
        self.optimizer.step()

    def _tie(self) -> None:
        """One storage for the adapters of all members."""
        for party in self.members:
            own = party.model.adapter_parameters()
            for mine, theirs in zip(self.holder.model.adapter_parameters(), own, strict=True):
                theirs.data = mine.data

    def _largest(self, data: dict[str, TaskData], told: Any) -> tuple[PartyConfig, Base]:
        run = self.config
        bases = load_bases(run, data, progress=told)
        generates = any(p.task.kind == "generation" for p in run.parties)
        able = [p for p in run.parties if not (generates and bases[p.name].encoder)]
        largest = max(able, key=lambda p: sum(x.numel() for x in bases[p.name].model.parameters()))
        # its base must take everybody's texts; the same sizes give the same base again
        longest = max(p.train.max_length for p in run.parties)
        wide = largest.model_copy(
            update={"train": largest.train.model_copy(update={"max_length": longest})}
        )
        if longest > largest.train.max_length and largest.model.path is None:
            bases = load_bases(run.model_copy(update={"parties": (wide,)}), data, progress=told)
        return largest, bases[largest.name]
