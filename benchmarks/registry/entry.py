"""What an entry of the registry is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedkernels.testing.check import Verdict

from ..peers import Contender, Peer

__all__ = ["FORWARD", "FORWARD_BACKWARD", "SAVED", "Case", "Entry", "Goal", "Results", "Sizes"]

GATE_TEST = "tests/benchmarks/test_benchmarks_smoke.py::test_every_entry_passes_its_gate"

FORWARD = "fwd"  # with gradient recording on, as in a training step
FORWARD_BACKWARD = "fwd_bwd"
SAVED = "saved"  # not a time: the activations kept for backward, in peak_mb

Sizes = Mapping[str, int]
Results = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A name and the sizes behind it, by DESIGN.md's dimension letters."""

    name: str
    sizes: Sizes


@dataclass(frozen=True)
class Goal:
    """time(peer) / time(ours) must reach `ratio` in every case named, or in the geometric mean.

    `cases` and `dtypes` empty: all of the entry's.
    """

    peer: Peer
    ratio: float
    direction: str = FORWARD_BACKWARD
    mean: bool = False
    cases: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    def covers(self, case: str, direction: str, dtype: str) -> bool:
        return (
            direction == self.direction
            and (not self.cases or case in self.cases)
            and (not self.dtypes or dtype in self.dtypes)
        )


@dataclass(frozen=True)
class Entry:
    """One op under one setting.

    problem(sizes, dtype, device) draws the tensors; ours(problem, backend) is the timed contender;
    gate(problem, backend) compares exactly that call with the float64 reference.
    bytes_moved and flops count the least that the op has to do, for (sizes, direction, itemsize)
    and (sizes, direction): the same count divides every contender's time.
    same(ours, peer): None if the peer computed the same thing, else what differs.
    exps: likewise exponentials. unit: what a call does many of, and how many: tables then also give
    nanoseconds for one, and the share of the bound.
    """

    name: str
    family: str
    op: str
    cases: tuple[Case, ...]
    quick: tuple[Case, ...]
    directions: tuple[str, ...]
    dtypes: tuple[str, ...]
    peers: tuple[Peer, ...]
    goals: tuple[Goal, ...]
    problem: Callable[[Sizes, torch.dtype, str], Any]
    ours: Callable[[Any, str], Contender]
    gate: Callable[[Any, str], Verdict]
    gate_test: str
    bytes_moved: Callable[[Sizes, str, int], float]
    flops: Callable[[Sizes, str], float]
    same: Callable[[Any, Results, Results], str | None]
    exps: Callable[[Sizes, str], float] = lambda sizes, direction: 0.0
    unit: tuple[str, Callable[[Sizes], int]] | None = None
