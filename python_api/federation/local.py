"""The default engine: all parties in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from python_api.federation.bus import Federation, Party, serve
from python_api.federation.manifest import Manifest
from python_api.federation.traffic import TrafficLog

__all__ = ["LocalFederation"]


class LocalFederation(Federation):
    """Calls go through the wire format all the same: no tensor is shared by accident, and the
    bytes in `traffic.jsonl` are those of a real network.

    parties: in the order in which they are called and summed.
    seed: the run's seed, from which the parties' random streams derive.
    check: called before every party's turn; may raise, for instance to stop the run there.

    >>> import torch
    >>> from python_api.federation import OpRule, Rule
    >>> class Doubler(Party):
    ...     def __init__(self, name): self.name = name
    ...     def double(self, payload): return {"x": 2 * payload["x"]}
    >>> rule = {"x": Rule(dtype=torch.float32, shape=(2,))}
    >>> manifest = Manifest({"double": OpRule(down=rule, up=rule)})
    >>> federation = LocalFederation([Doubler("a"), Doubler("b")], manifest)
    >>> federation.call("double", {"x": torch.ones(2)}).sum("x")
    tensor([4., 4.])
    """

    def __init__(
        self,
        parties: Sequence[Party],
        manifest: Manifest,
        *,
        traffic: TrafficLog | None = None,
        seed: int = 0,
        check: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            [party.name for party in parties],
            manifest,
            {party.name: party.sizes for party in parties},
            traffic=traffic,
        )
        self._members = {party.name: party for party in parties}
        self._seed = seed
        self._check = check

    def _exchange(self, party: str, op: str, frame: bytes, call: int) -> bytes:
        if self._check:
            self._check()
        return serve(
            self._members[party],
            self.manifest,
            op,
            frame,
            sizes=self.sizes[party],
            run_seed=self._seed,
            call=call,
        )
