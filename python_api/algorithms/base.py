"""What every algorithm is to the runner: parties, a manifest, and rounds over a bus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from python_api.algorithms.finetune import metric_rows
from python_api.federation.manifest import OpRule, Rule

if TYPE_CHECKING:
    from python_api.config import RunConfig
    from python_api.federation.bus import Federation, Party
    from python_api.federation.manifest import Manifest

__all__ = ["EVALUATE", "Algorithm"]

# metrics leave by name and value; one may be undefined (AUC with one class in the split)
EVALUATE = OpRule(
    up={
        "names": Rule(kind="text"),
        "values": Rule(dtype=torch.float64, shape=(None,), finite=False),
    }
)


class Algorithm(ABC):
    """One federated algorithm, built from a resolved config.

    The runner calls, in this order, `parties` (which builds the models), `manifest` (what may
    cross the bus) and `run` (the rounds), which sees the outside through `federation` and
    `recorder` only.
    """

    name: str

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.check()

    def check(self) -> None:  # noqa: B027 (not every algorithm has something to refuse)
        """Refuse a config that this algorithm cannot run, with an `InputError`; load nothing."""

    @abstractmethod
    def parties(self, recorder: Any) -> list[Party]:
        """Build the parties, in the order of the config."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Name everything that may cross the bus, in both directions."""

    @abstractmethod
    def run(self, federation: Federation, recorder: Any) -> None:
        """Run all rounds; write metrics and round states through `recorder`."""

    def evaluates(self, round: int) -> bool:
        """Whether round `round` is evaluated: every `eval.every`-th, and always the last."""
        return round == self.config.rounds or round % self.config.eval.every == 0

    def evaluate(self, federation: Federation, recorder: Any, round: int, phase: str) -> None:
        """Let every party measure itself and write the rows, in party order."""
        for party, reply in federation.call("evaluate").ok.items():
            for split, metric, value in metric_rows(reply):
                recorder.metric(
                    round=round,
                    party=party,
                    phase=phase,
                    split=split,
                    metric=metric,
                    value=value,
                )
