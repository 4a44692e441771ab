"""The config that an algorithm's name stands for."""

from __future__ import annotations

import copy
from typing import Any

from python_api.algorithms import ALGORITHMS
from python_api.config.settings import setting_of

__all__ = ["default_source", "known_algorithms"]

# Three families, widths, depths, ranks and tasks; small enough for two cores and three minutes.
PARTIES: list[dict[str, Any]] = [
    {
        "name": "sentiment",
        "rank": 4,
        "model": {"kind": "llama", "hidden_size": 64, "layers": 2, "heads": 4},
        "task": {"data": "builtin:sentiment"},
    },
    {
        "name": "topic",
        "rank": 8,
        "model": {"kind": "gpt2", "hidden_size": 96, "layers": 3, "heads": 4},
        "task": {"data": "builtin:topic"},
    },
    {
        "name": "intent",
        "rank": 6,
        "model": {"kind": "bert", "hidden_size": 80, "layers": 2, "heads": 4},
        "task": {"data": "builtin:intent"},
    },
]
# What FedIT averages must have one shape: one base, one rank.
SHARED_BASE = {"kind": "llama", "hidden_size": 64, "layers": 2, "heads": 4}

# The left and the right half of handwritten digits: few rows that both have, lopsided classes.
TABLES: list[dict[str, Any]] = [
    {
        "name": "left",
        "active": True,
        "table": "builtin:digits?views=2&view=1",
        "id": "id",
        "model": {"kind": "mlp", "hidden": [64], "out": 32},
    },
    {
        "name": "right",
        "table": "builtin:digits?views=2&view=2",
        "id": "id",
        "model": {"kind": "mlp", "hidden": [64], "out": 32},
    },
]


def known_algorithms() -> tuple[str, ...]:
    """The names that `algorithm = ...` and the command line take."""
    return tuple(ALGORITHMS)


def default_source(algorithm: str) -> dict[str, Any]:
    """The default config as a user would write it; a fresh dict."""
    if setting_of(algorithm, {}) == "vertical":
        return _tables(algorithm)
    source: dict[str, Any] = {
        "algorithm": algorithm,
        "seed": 0,
        "rounds": 5,
        "device": "auto",
        # under half a pass per round, so that curves rise over the rounds
        "train": {"steps": 20, "max_length": 64},
        "eval": {},
        "party": copy.deepcopy(PARTIES),
    }
    if algorithm == "fedit":
        source["models"] = {"shared": dict(SHARED_BASE)}
        for party in source["party"]:
            party |= {"rank": 8, "model": "shared"}
    return source


def _tables(algorithm: str) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "seed": 0,
        "rounds": 80,
        "device": "auto",
        "train": {},
        "eval": {},
        "data": {"label": "digit", "overlap": 0.1, "imbalance": 50.0},
        "party": copy.deepcopy(TABLES),
    }
