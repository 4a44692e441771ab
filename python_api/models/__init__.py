"""Frozen transformers models with adapters in seven slots, and what is needed to train them.

Heavy imports (transformers) happen when a model is built, not here.
"""

from __future__ import annotations

from python_api.models.slots import SLOTS, SlotSite, find_slots

__all__ = ["SLOTS", "SlotSite", "find_slots"]
