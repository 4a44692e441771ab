"""What one choice sets for others: the setting itself, `basis = "svd"`, `preset = "literal"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LITERAL", "Preset", "preset", "vertical_preset"]

# No formula of the paper is public: the reconstruction, before anything was measured.
LITERAL: dict[str, Any] = {
    "head": "prototype",
    "gate_reads": "all",
    "gate_prior": True,
    "prior": "test",
    "mix": "geometric",
    "lam_rule": "ramp",
    "floor": 1e-3,
    "em": 1e-3,
    "select": "class",
    "unseen": "relations",
    "share": "relations",
    "rows": "aligned",
    "prototypes": "ema",
    "l_ct": 1.0,
    "lower": 5,
    "upper": 1,
    "pull": 0.1,
    "local_weight": 1.0,
}


@dataclass(frozen=True)
class Preset:
    """Values above what is built in and below everything that the user writes."""

    top: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    h2tune: dict[str, Any] = field(default_factory=dict)
    proto_evfl: dict[str, Any] = field(default_factory=dict)
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


def vertical_preset(proto_evfl: Mapping[str, Any]) -> Preset:
    """Tables are small and learn in many short rounds; `preset = "literal"` sets the method."""
    return Preset(
        top={"rounds": 40},
        train={"lr": 3e-3, "batch_size": 64, "weight_decay": 1e-3, "keep": "best"},
        proto_evfl=dict(LITERAL) if proto_evfl.get("preset") == "literal" else {},
    )
