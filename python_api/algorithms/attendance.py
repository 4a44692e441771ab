"""Who takes part in a round, when a round may go on without a party."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_api.federation.bus import Federation, Payload, Replies

__all__ = ["Attendance"]


class Attendance:
    """One round's parties: who fails an op sits out the rest of it; the next begins with all.

    federation: set to the round that this stands for.
    needed: how many must answer every op; None: all, so that one failure ends the run
        (`RunFailed` from `Federation.call`, which names and logs every party that failed).

    parties: who is still there. failed: party -> reason, for the round's state. An op goes to it
        as it would to the federation.
    """

    def __init__(self, federation: Federation, needed: int | None = None) -> None:
        self.federation, self.needed = federation, needed
        self.parties = federation.parties
        self.failed: dict[str, str] = {}

    @property
    def round(self) -> int:
        return self.federation.round

    def call(
        self,
        op: str,
        payloads: Payload | Mapping[str, Payload] | None = None,
        *,
        to: Sequence[str] | None = None,
    ) -> Replies:
        """`Federation.call` with those who are still there, or those of them that `to` names."""
        asked = tuple(self.parties if to is None else to)
        absent = len(self.parties) - len(asked)
        needed = None if self.needed is None else max(0, self.needed - absent)
        replies = self.federation.call(op, payloads, to=asked, min_replies=needed)
        self.parties = tuple(name for name in self.parties if name not in replies.failed)
        self.failed |= replies.failed
        return replies

    def state(self) -> dict[str, object]:
        """`failed/<party>`: why its part of the round is missing; empty if all took part."""
        return {f"failed/{name}": reason for name, reason in self.failed.items()}
