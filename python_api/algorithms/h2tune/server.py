"""The server's half: the first shared tensor, aggregation, and who gets which tensor back.

The server holds no model and no data. Shapes: G `(L*, 7, R, R)` float32; a party's part of it
`(L*, S_k, R, R)`, its own slots in the order of the seven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Upload", "aggregate", "coverage", "first_shared", "permuted", "weights"]

N_SLOTS = 7


@dataclass(frozen=True)
class Upload:
    """What one party sent: G_k `(L*, S, R, R)`, P `(L*, L_k)`, Omega as bool `(L_k, S, R, R)`."""

    shared: Tensor
    relation: Tensor
    mask: Tensor
    slots: tuple[int, ...]
    weight: float


def first_shared(layers: int, middle_rank: int, *, generator: torch.Generator) -> Tensor:
    """G_0: uniform in +-1/sqrt(7 R^2), the bound of (H8), so that I + T starts near I."""
    bound = 1 / math.sqrt(N_SLOTS * middle_rank**2)
    shape = (layers, N_SLOTS, middle_rank, middle_rank)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def weights(samples: Sequence[int], *, rule: str) -> list[float]:
    """p_k, summing to 1: "uniform" or by number of training rows ("samples").

    >>> weights([1, 3], rule="samples"), weights([1, 3], rule="uniform")
    ([0.25, 0.75], [0.5, 0.5])
    """
    if rule == "uniform":
        return [1 / len(samples)] * len(samples)
    total = sum(samples)
    return [n / total for n in samples]


def coverage(relation: Tensor, mask: Tensor) -> Tensor:
    """Who trained what: `c[j, m, a, b] = sum_l P[j, l] 1[(a, b) in Omega(l, m)]`."""
    return (relation @ mask.flatten(1).to(relation.dtype)).view(relation.shape[0], *mask.shape[1:])


def aggregate(
    shared: Tensor, uploads: Sequence[Upload], *, rule: str, floor: float = 1e-2
) -> Tensor:
    """The next G from G and the uploads, summed in their order.

    rule "counts": `G + sum_k p_k c_k (G_k - G) / max(sum_k p_k c_k, p_min)`, with
    `p_min = floor * min_k p_k`: who did not train an entry has no say in it, and an entry that one
    party alone trained keeps that party's value.
    rule "mean" (H5): `sum_k p_k G_k / sum_k p_k` over the parties that have the slot.
    A slot that no party has stays as it is.
    """
    if rule == "mean":
        return _mean(shared, uploads)
    total = torch.zeros_like(shared)
    share = torch.zeros_like(shared)
    for upload in uploads:
        slots = list(upload.slots)
        weight = upload.weight * coverage(upload.relation, upload.mask)
        total[:, slots] += weight * (upload.shared - shared[:, slots])
        share[:, slots] += weight
    return shared + total / share.clamp_min(floor * min(u.weight for u in uploads))


def _mean(shared: Tensor, uploads: Sequence[Upload]) -> Tensor:
    result = shared.clone()
    for m in range(N_SLOTS):
        having = [u for u in uploads if m in u.slots]
        if having:
            whole = sum(u.weight for u in having)
            parts = [(u.weight / whole) * u.shared[:, u.slots.index(m)] for u in having]
            result[:, m] = torch.stack(parts).sum(0)
    return result


def permuted(
    shared: Tensor,
    slots: Sequence[int],
    want: Sequence[int],
    *,
    generator: torch.Generator,
) -> Tensor:
    """Another party's tensor made meaningless, its values kept: the control `share = "shuffled"`.

    Of `shared (L*, 7, R, R)`, whose owner has `slots`, the slots `want` of the receiver are filled
    from a random order of the owner's slots (again from the start where the receiver has more), and
    the entries of every matrix are permuted. Layers keep their place. Returns
    `(L*, len(want), R, R)`.
    """
    order = torch.randperm(len(slots), generator=generator).tolist()
    source = [slots[order[i % len(order)]] for i in range(len(want))]
    flat = shared[:, source].flatten(2)
    keys = torch.rand(flat.shape, generator=generator)
    return flat.gather(-1, keys.argsort(-1)).view(-1, len(want), *shared.shape[2:])
