"""The seed of every benchmark."""

from __future__ import annotations

SEED = 20_26
