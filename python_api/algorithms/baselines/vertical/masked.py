"""All labelled rows, absent parties masked: the strongest baseline with the same information."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from python_api.algorithms.proto_evfl.algorithm import ProtoEvfl
from python_api.algorithms.proto_evfl.party import ProtoParty
from python_api.algorithms.vertical.manifest import BASE, LOWER, ROUND
from python_api.federation.manifest import Manifest

if TYPE_CHECKING:
    from python_api.algorithms.vertical.party import PassiveParty
    from python_api.config import ProtoEvflConfig, RunConfig
    from python_api.federation.bus import Payload

__all__ = ["MaskedParty", "VflMasked"]


class MaskedParty(ProtoParty):
    """A party that has no prototypes to share."""

    def share(self, payload: Payload) -> Payload:
        """Bus op: class prior and number of own rows."""
        return {"prior": self.own_rows.prior, "own": len(self.own_rows.x)}


class VflMasked(ProtoEvfl):
    """One linear head on the representations and the presence bits. It learns from aligned rows,
    from the same with parties masked at random, from the active party's own rows, and in lower
    steps from the labelled own rows of passive parties, which it visits.

    adjust: the log prior of a row's source (aligned, or the party's own: mixed with the global one)
        is added to the logits in training, as Proto-EVFL does; then priors travel each round, and
        running class means go out, from which a party without labels estimates its own.
    """

    name = "vfl_masked"
    switches: ClassVar[Mapping[str, object]] = {
        "local": "none",
        "gate": False,
        "select": "none",
        "l_ct": 0.0,
        "pseudo": 0.0,
    }
    party_class = MaskedParty

    def __init__(self, config: RunConfig) -> None:
        # a party's own weight of the transport loss is not this algorithm's
        parties = tuple(party.model_copy(update={"l_ct": None}) for party in config.parties)
        super().__init__(config.model_copy(update={"parties": parties}))

    @cached_property
    def keys(self) -> ProtoEvflConfig:
        keys = super().keys
        return keys.model_copy(update={"prior": "mixed" if keys.adjust else "none"})

    def manifest(self) -> Manifest:
        return Manifest(BASE | LOWER | (ROUND if self.keys.adjust else {}))

    def begin_run(self) -> None:
        super().begin_run()
        # no local heads to vote: the fused head decides about every class
        self.server.fusion.votes.fill_(False)

    def begin_round(self, round: int) -> None:
        if self.keys.adjust:
            super().begin_round(round)

    def end_round(self, round: int) -> None:
        if self.keys.adjust:
            super().end_round(round)

    def state(self, round: int) -> dict[str, object]:
        """Without what this algorithm has none of: a selection, and priors unless they are used."""
        absent = ("selected",) if self.keys.adjust else ("selected", "prior/")
        return {k: v for k, v in super().state(round).items() if not k.startswith(absent)}

    def prototype_leak(self, member: PassiveParty) -> dict[str, float]:
        return {}
