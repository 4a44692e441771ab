"""Prototypes as the tiles read them: the centre, centred or unit prototypes, their sizes."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fedkernels._triton import launch, padded
from fedkernels._triton.centre import centre_of
from fedkernels._triton.points import load_rows
from fedkernels.prototype.triton.configurations import PREPARE
from fedkernels.prototype.triton.tiles import COSINE, DOT, sizes_of, unit


@triton.jit
def prepare_rows(
    MU, CENTRE, NEAR, SIZE, K, D, METRIC: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """NEAR and SIZE of `tiles.py`."""
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_i = i < K
    size = sizes_of(MU, CENTRE, i, in_i, D, METRIC, BI, BK)
    tl.store(SIZE + i, size, mask=in_i)
    if METRIC != DOT:
        for start in range(0, D, BK):
            d = start + tl.arange(0, BK)
            mu = load_rows(MU, i, in_i, d, D)
            if METRIC == COSINE:
                mu = unit(mu, size)
            else:
                mu = mu - tl.load(CENTRE + d, mask=d < D, other=0.0)[None, :]
            at = i.to(tl.int64)[:, None] * D + d[None, :]
            tl.store(NEAR + at, mu, mask=in_i[:, None] & (d < D)[None, :])


@dataclass(frozen=True)
class Prototypes:
    """Prototypes (K, D) as given, prepared (`near`), the centre (D,) and the sizes (K,)."""

    mu: Tensor
    near: Tensor
    centre: Tensor
    size: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The pointers that a kernel takes."""
        return self.mu, self.near, self.centre, self.size


def prepare(x: Tensor, mu: Tensor, metric: int) -> Prototypes:
    """The prototypes for rows of x's dtype."""
    K, D = mu.shape
    BK = padded(D, PREPARE.BK)
    options = {"BI": PREPARE.BI, "BK": BK, "num_warps": PREPARE.warps, "num_stages": PREPARE.stages}
    size = mu.new_empty(K)
    centre = mu.new_empty(D)
    if metric < COSINE.value:
        centre = centre_of(x, mu[None], PREPARE)[0]
    rows = -(-K // PREPARE.BI)
    near = mu if metric == DOT.value else mu.new_empty(K, D)
    launch(prepare_rows, rows, x, mu, centre, near, size, K, D, METRIC=metric, **options)
    return Prototypes(mu, near, centre, size)
