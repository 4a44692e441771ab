"""Whose tensor is whose: who shares a G, what each party is sent, what its upload changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from python_api.algorithms.h2tune.server import Upload, aggregate, permuted

__all__ = ["SharedTensors"]


class SharedTensors:
    """The server's state: one G `(L*, 7, R, R)` per group of parties, or one per party.

    groups: each a list of party names that share one G.
    slots: each party's slots as positions among the seven.
    start: the first G of a group, given its names; all parties of a group start from the same one.
    share: True: the aggregate goes back to all. False: each party gets back its own G_k, untouched
        by anyone. "shuffled": each gets the next party's G_k with slots and entries permuted anew
        every round, which keeps the numbers and takes away what they mean.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        slots: Mapping[str, tuple[int, ...]],
        start: Mapping[str, Tensor],
        *,
        share: bool | str = True,
        rule: str = "counts",
        floor: float = 1e-2,
    ) -> None:
        self.groups = [list(group) for group in groups]
        self.slots = dict(slots)
        self.share, self.rule, self.floor = share, rule, floor
        self.updates = 0
        self.group_of = {name: n for n, group in enumerate(self.groups) for name in group}
        if share is True:
            self.tensors = {f"group{n}": start[g[0]].clone() for n, g in enumerate(self.groups)}
        else:
            self.tensors = {name: start[name].clone() for name in self.group_of}

    def of(self, name: str) -> Tensor:
        """The whole G `(L*, 7, R, R)` that stands behind what party `name` is sent."""
        return self.tensors[self._key(name)]

    def _key(self, name: str) -> str:
        return f"group{self.group_of[name]}" if self.share is True else name

    def download(self, name: str, *, generator: torch.Generator, first: bool = False) -> Tensor:
        """What party `name` is sent, its own slots `(L*, S, R, R)`; the `first` is not shuffled."""
        slots = list(self.slots[name])
        group = self.groups[self.group_of[name]]
        if self.share != "shuffled" or first or len(group) == 1:
            return self.of(name)[:, slots]
        donor = group[(group.index(name) + 1) % len(group)]
        return permuted(self.of(donor), self.slots[donor], slots, generator=generator)

    def update(self, uploads: Mapping[str, Upload]) -> None:
        """Take the replies of one round, in party order; who did not reply has no say in it."""
        self.updates += 1
        if self.share is not True:
            for name, upload in uploads.items():
                self.tensors[name][:, list(upload.slots)] = upload.shared
            return
        for n, group in enumerate(self.groups):
            sent = [uploads[name] for name in group if name in uploads]
            if sent:
                key = f"group{n}"
                self.tensors[key] = aggregate(
                    self.tensors[key], sent, rule=self.rule, floor=self.floor
                )

    def state(self) -> dict[str, Tensor]:
        """`G` if there is one tensor, else `G/<party>` for every party."""
        if len(self.tensors) == 1:
            return {"G": next(iter(self.tensors.values()))}
        return {f"G/{name}": self.of(name) for name in self.group_of}
