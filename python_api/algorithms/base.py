"""What every algorithm is to the runner: parties, a manifest, and rounds over a bus."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from python_api.algorithms.finetune import metric_rows
from python_api.errors import InputError
from python_api.federation.manifest import OpRule, Rule

if TYPE_CHECKING:
    from python_api.algorithms.attendance import Attendance
    from python_api.config import RunConfig
    from python_api.federation.bus import Federation, Party
    from python_api.federation.manifest import Manifest

__all__ = ["EVALUATE", "Algorithm", "samples_valid"]


# metrics leave by name and value; one may be undefined (AUC with one class in the split)
def _metrics_valid(reply: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    names, values = reply["names"], reply["values"]
    one_each = isinstance(names, list) and len(names) == len(values) == len(set(names))
    if one_each and all(re.fullmatch(r"[a-z]+/[A-Za-z0-9_.-]{1,40}", name) for name in names):
        return None
    return f"entry 'names': expected one split/metric per value ({len(values)}), got others"


EVALUATE = OpRule(
    up={
        "names": Rule(kind="text"),
        "values": Rule(dtype=torch.float64, shape=(None,), finite=False),
    },
    valid=_metrics_valid,
)


def samples_valid(reply: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """For `OpRule.valid`: a party that says how many rows it trains on names one or more."""
    rows = reply.get("samples", 1)
    if type(rows) is int and rows >= 1:
        return None
    return f"entry 'samples': expected a whole number of rows, 1 or more, got {rows}"


class Algorithm(ABC):
    """One federated algorithm, built from a resolved config.

    The runner calls, in this order, `parties` (which builds the models), `manifest` (what may
    cross the bus) and `run` (the rounds), which sees the outside through `federation` and
    `recorder` only.
    """

    name: str
    server: Party | None = None  # a party whose code runs at the server: kept like the others

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

    def check_min_replies(self) -> None:
        """`InputError` if a round is to need more parties than there are."""
        most, given = len(self.config.parties), self.config.h2tune.min_replies
        if given > most:
            raise InputError(
                f"h2tune.min_replies: {given} is above the number of parties; "
                f"expected 0 (all) to {most}"
            )

    def evaluate(
        self, parties: Federation | Attendance, recorder: Any, round: int, phase: str
    ) -> None:
        """Let every party measure itself and write the rows, in party order."""
        for party, reply in parties.call("evaluate").ok.items():
            for split, metric, value in metric_rows(reply):
                recorder.metric(
                    round=round,
                    party=party,
                    phase=phase,
                    split=split,
                    metric=metric,
                    value=value,
                )
