"""The two kinds of run: parties with a model and a task, and parties with a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["VERTICAL", "Setting", "setting_of"]

Setting = Literal["tuning", "vertical"]

# algorithms on tables; `centralised` runs in either setting
VERTICAL = (
    "proto_evfl",
    "vfl_local",
    "vfl_vanilla",
    "vfl_balanced",
    "vfl_masked",
    "fixmatch_lite",
    "fedcvt_lite",
)


def setting_of(algorithm: str, values: Mapping[str, Any]) -> Setting:
    """The setting of a config as the user wrote it: by its algorithm, or by its parties' tables.

    >>> setting_of("proto_evfl", {}), setting_of("local", {})
    ('vertical', 'tuning')
    >>> setting_of("centralised", {"party": [{"name": "bank", "table": "bank.csv"}]})
    'vertical'
    """
    if algorithm in VERTICAL:
        return "vertical"
    parties = values.get("party")
    tables = isinstance(parties, list) and any(
        isinstance(party, Mapping) and "table" in party for party in parties
    )
    return "vertical" if algorithm == "centralised" and tables else "tuning"
