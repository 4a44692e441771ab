"""What every algorithm is to the runner: parties, a manifest, and rounds over a bus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from python_api.config import RunConfig

    from python_api.federation.bus import Federation, Party
    from python_api.federation.manifest import Manifest

__all__ = ["Algorithm"]


class Algorithm(ABC):
    """One federated algorithm, built from a resolved config.

    The runner calls, in this order, `parties` (which builds the models), `manifest` (what may cross
    the bus) and `run` (the rounds). `run` sees the outside through `federation` and `recorder` only.
    """

    name: str

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.check()

    def check(self) -> None:
        """Refuse, with one `InputError` line, a config that this algorithm cannot run. Loads nothing."""

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
