"""A party that trains plain LoRA, and the number of passes that makes a comparison fair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from python_api.algorithms.finetune import FineTuneParty
from python_api.federation.manifest import OpRule, Rule

if TYPE_CHECKING:
    from python_api.config import RunConfig
    from python_api.federation.bus import Payload
    from python_api.models.batching import Batch

__all__ = ["TRAIN", "PlainParty", "accumulate", "sweeps", "total_sweeps"]

TRAIN = OpRule(
    down={"round": Rule(kind="number")},
    up={"loss": Rule(kind="number", finite=False), "passes": Rule(kind="number")},
)


def sweeps(run: RunConfig, round: int) -> int:
    """How often a baseline goes over a round's macro-batches: as many passes as H2Tune would make.

    Two where H2Tune alternates on every macro-batch, which it does from round 2 on; else one.
    """
    return 2 if round > 1 and run.h2tune.alternate == "step" else 1


def total_sweeps(run: RunConfig) -> int:
    """The sweeps of all rounds together."""
    return sum(sweeps(run, round) for round in range(1, run.rounds + 1))


def accumulate(party: FineTuneParty, macro: Sequence[Batch]) -> float:
    """Gradient of the mean loss over one macro-batch; returns the loss."""
    total = 0.0
    for share, batch in zip(party.shares(macro), macro, strict=True):
        loss, _ = party.model.loss(batch)
        (share * loss).backward()
        total += share * float(loss.detach())
    return total


class PlainParty(FineTuneParty):
    """LoRA (the triple layer without a middle), A, B and the head trained together."""

    progress: Callable[..., None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer = self.make_optimizer("private", self.groups())
        self.optimizer.total = total_sweeps(self.run) * self.steps_per_round

    def train_locally(self, payload: Payload) -> Payload:
        """One round. Replies with the mean loss and the number of forward-backward passes."""
        round = int(payload["round"])  # type: ignore[arg-type]
        self.model.train()
        count = sweeps(self.run, round)
        steps, losses = count * self.steps_per_round, []
        for _ in range(count):
            for macro in self.macro_batches(round):
                losses.append(accumulate(self, macro))
                self.optimizer.step()
                if self.progress is not None:
                    step, loss = len(losses), losses[-1]
                    self.progress(party=self.name, round=round, step=step, steps=steps, loss=loss)
        return {"loss": sum(losses) / max(1, len(losses)), "passes": len(losses)}
