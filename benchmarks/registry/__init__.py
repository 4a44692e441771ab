"""What is measured: one entry per op, as data.

To add an op: a problem (problems/), its peers (peers/), and one `Entry` in its family's file here.
The smoke test runs a tiny case of every entry, so an entry that no longer runs is found by
`make test`.
"""

from __future__ import annotations

from . import prototype, transport, triple_lora
from .entry import FORWARD, FORWARD_BACKWARD, SAVED, Case, Entry, Goal

__all__ = ["ENTRIES", "FORWARD", "FORWARD_BACKWARD", "SAVED", "Case", "Entry", "Goal"]

ENTRIES: tuple[Entry, ...] = (*triple_lora.ENTRIES, *transport.ENTRIES, *prototype.ENTRIES)
