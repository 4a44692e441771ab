"""What one choice sets for others: `basis = "svd"` and its control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """Values above what is built in and below everything that the user writes."""

    top: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    h2tune: dict[str, Any] = field(default_factory=dict)
    party: dict[str, Any] = field(default_factory=dict)
    refuses_alpha: bool = False


def preset(algorithm: str, h2tune: Mapping[str, Any]) -> Preset:
    """`basis = "svd"` (or "rotated", its control): A and B frozen, T trained from 0.

    A baseline on the same config gets the same schedule, so that rows are comparable; its learning
    rate is that of A and B, which H2Tune does not train there, and stays what it is.
    """
    if h2tune.get("basis", "trained") not in ("svd", "rotated"):
        return Preset()
    own = algorithm == "h2tune"
    train = {"steps": 4, "batch_size": 32, "warmup": 10, "schedule": "cosine", "head_lr": 1e-2}
    return Preset(
        top={"rounds": 120},
        train=train | ({"lr": 1e-2} if own else {}),
        h2tune={
            "middle_rank": 32,
            "select": "block",
            "alternate": "joint",
            # One base: layer l is layer l. A relation that each party trains for itself would put
            # another T into each party's model, also where all receive the same G.
            "relation": "last",
        },
        party={"rank": 32},
        refuses_alpha=own,
    )
