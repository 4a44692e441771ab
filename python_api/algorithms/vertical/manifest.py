"""What may cross the bus between the active party and the others.

A passive party's payloads hold no label of the active party, the active party receives no column
of another's table: both are representations, row numbers, ids and sums, each with a shape.
"""

from __future__ import annotations

import torch

from python_api.federation.manifest import OpRule, Rule

__all__ = ["BASE", "LOWER", "ROUND"]

IDS = Rule(kind="text", max_bytes=1 << 28)
ROWS = Rule(dtype=torch.int64, shape=(None,))
SPLIT = Rule(kind="text", max_bytes=16)
H = Rule(dtype=torch.float32, shape=(None, "out"))

# every algorithm of the setting
BASE = {
    "match": OpRule(
        down={"split": SPLIT, "ids": IDS},
        up={"present": Rule(dtype=torch.bool, shape=(None,))},
    ),
    "embed": OpRule(down={"rows": ROWS}, up={"h": H}),
    "backward": OpRule(down={"grad": H}),
    "evaluate": OpRule(down={"split": SPLIT, "rows": ROWS}, up={"h": H}),
    "keep": OpRule(),
}


def _per_class(*, optional: bool = False) -> Rule:
    return Rule(dtype=torch.float32, shape=("classes",), optional=optional)


def _packed(*, optional: bool = False) -> Rule:
    """A local head; `packed` is what a class takes of it."""
    return Rule(dtype=torch.float32, shape=("classes", "packed"), optional=optional)


# the fused head as it is to a row that one party alone holds, bias last; and its gradient
VISITING = Rule(
    dtype=torch.float32, shape=("classes", lambda sizes: sizes["out"] + 1), optional=True
)


# the start and the end of a round of Proto-EVFL
ROUND = {
    "begin": OpRule(
        down={
            "head": _packed(),
            "prior": _per_class(),
            "keep": Rule(kind="number"),
            "lam": Rule(kind="number"),
            "fused": VISITING,
        },
        up={"kept": Rule(dtype=torch.int64, shape=("classes", 2))},
    ),
    "share": OpRule(
        up={
            "prior": _per_class(),
            "own": Rule(kind="number"),
            "counts": _per_class(optional=True),
            "prototypes": _packed(optional=True),
            "relations": Rule(dtype=torch.float32, shape=("classes", "classes"), optional=True),
            "withheld": Rule(kind="number", optional=True),
        }
    ),
}
# one lower step: the fused head visits a party with labels, its gradient returns
LOWER = {
    "lower": OpRule(
        down={"head": VISITING},
        up={"loss": Rule(kind="number"), "grad": VISITING},
    )
}
