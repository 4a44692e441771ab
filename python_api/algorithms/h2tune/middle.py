"""The party's half of the shared tensor: `M = P^T G + DeltaM`, the scores S, Omega, and T.

All layers and slots of a party stand in one tensor `(L_k, S, R, R)`, so that one call of
`fedkernels.select_middle` a step serves the whole model.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fedkernels import select_middle
from python_api.algorithms.h2tune.relation import (
    Relation,
    download,
    upload_ridge,
    upload_transpose,
)

__all__ = ["PartyMiddle", "block_index", "pack_mask", "unpack_mask"]


def block_index(layers: int, slots: int, rank: int, middle_rank: int) -> Tensor:
    """The leading `rank x rank` block as positions in the middle: `(L, S, r*r)` int64, ascending.

    >>> block_index(1, 1, 2, 3)
    tensor([[[0, 1, 3, 4]]])
    """
    row = torch.arange(rank)
    block = (row[:, None] * middle_rank + row[None, :]).flatten()
    return block.expand(layers, slots, rank * rank).clone()


def pack_mask(mask: Tensor) -> Tensor:
    """Eight entries a byte, highest bit first: bool of any shape -> uint8 `(ceil(n / 8),)`."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_mask`.

    >>> unpack_mask(pack_mask(torch.tensor([[True, False], [False, True]])), (2, 2))
    tensor([[ True, False],
            [False,  True]])
    """
    flat = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(flat.astype(bool)).view(shape)


class PartyMiddle(nn.Module):
    """One party's middle matrices. Trained: `delta`, `scores`, and the relation's Theta.

    shared      G as received, own slots: `(L*, S, R, R)`, constant during local training
    delta       DeltaM `(L_k, S, R, R)`, 0 after every download
    scores      S `(L_k, S, R, R)`, private; Kaiming-uniform, +-1/sqrt(R)
    index       Omega `(L_k, S, r*r)` int64
    previous_*  T and Omega at the end of the last round, what the anchor compares with

    select "round": Omega is chosen when G arrives and kept for the round; "every_step": at every
    step; "block": the leading r x r block, always. An entry that stays keeps its slot in T.
    """

    shared: Tensor
    index: Tensor
    trained: Tensor
    previous_T: Tensor
    previous_index: Tensor
    received: Tensor
    closed: Tensor

    def __init__(
        self,
        shared: Tensor,
        *,
        layers: int,
        rank: int,
        relation: str = "depth",
        select: str = "round",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        server_layers, slots, middle_rank, _ = shared.shape
        if rank > middle_rank:
            raise ValueError(f"rank {rank} above middle_rank {middle_rank}")
        if select not in ("round", "every_step", "block"):
            raise ValueError(f"select {select!r} is not known; expected round, every_step or block")
        self.rank, self.middle_rank, self.select = rank, middle_rank, select
        shape = (layers, slots, middle_rank, middle_rank)
        bound = 1 / math.sqrt(middle_rank)
        scores = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        self.scores = nn.Parameter(scores, requires_grad=select != "block")
        self.relation = Relation(relation, server_layers, layers, generator=generator)
        self.delta = nn.Parameter(torch.zeros(shape))
        self.register_buffer("shared", shared.clone())
        self.register_buffer("index", block_index(layers, slots, rank, middle_rank))
        self.register_buffer("trained", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("previous_T", torch.zeros(layers, slots, rank, rank))
        self.register_buffer("previous_index", torch.zeros_like(self.index))
        self.register_buffer("received", torch.zeros((), dtype=torch.int64))
        self.register_buffer("closed", torch.zeros((), dtype=torch.int64))

    def receive(self, shared: Tensor) -> Tensor:
        """Take a downloaded G: DeltaM back to 0, Omega chosen anew. Returns the T that it gives."""
        with torch.no_grad():
            self.shared.copy_(shared)
            self.delta.zero_()
            middle = download(self.relation(), self.shared)
            if self.select == "block":
                T, index = select_middle(middle, self.scores, self.rank, index=self.index)
            else:
                known = self.index if int(self.received) else None
                T, index = select_middle(middle, self.scores, self.rank, previous=known)
            self.index.copy_(index)
            self.trained.copy_(self._mask())
            self.received += 1
            return T

    def gather(self) -> Tensor:
        """T `(L_k, S, r, r)` now, differentiable in DeltaM, Theta and, straight through, S."""
        middle = self.middle()
        if self.select != "every_step":
            straight = self.select == "round"
            T, _ = select_middle(
                middle,
                self.scores,
                self.rank,
                index=self.index,
                straight_through=straight,
            )
            return T
        T, index = select_middle(middle, self.scores, self.rank, previous=self.index)
        with torch.no_grad():
            self.index.copy_(index)
            self.trained |= self._mask()
        return T

    def middle(self) -> Tensor:
        """`M = P^T G + DeltaM`, `(L_k, S, R, R)`."""
        return download(self.relation(), self.shared) + self.delta

    def close_round(self) -> Tensor:
        """Keep T and Omega as the next round's anchor; returns T."""
        with torch.no_grad():
            T, _ = select_middle(self.middle(), self.scores, self.rank, index=self.index)
            self.previous_T.copy_(T)
            self.previous_index.copy_(self.index)
            self.closed += 1
            return T

    @property
    def has_previous(self) -> bool:
        """Whether a round has ended, so that there is a T to anchor to."""
        return bool(self.closed)

    def upload(self, *, rule: str = "ridge", ridge: float = 1e-2) -> dict[str, Tensor]:
        """What leaves: `shared` = G_k, `relation` = P, `omega` = bits of the trained entries."""
        with torch.no_grad():
            relation = self.relation()
            if rule == "ridge":
                shared = upload_ridge(self.shared, relation, self.delta, ridge=ridge)
            else:
                shared = upload_transpose(relation, self.middle())
            omega = pack_mask(self.trained)
            return {
                "shared": shared,
                "relation": relation.float().clone(),
                "omega": omega,
            }

    def _mask(self) -> Tensor:
        flat = torch.zeros(self.trained.shape, dtype=torch.bool, device=self.index.device).flatten(
            2
        )
        return flat.scatter(-1, self.index, True).view_as(self.trained)
