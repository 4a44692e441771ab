"""Vertical data: one table per party, joined by id. `load_vertical` reads all of a run."""

from __future__ import annotations

from python_api.data.vertical.columns import Columns
from python_api.data.vertical.load import load_vertical
from python_api.data.vertical.types import PartyData, Split, VerticalData

__all__ = ["Columns", "PartyData", "Split", "VerticalData", "load_vertical"]
