"""The named cases of Sinkhorn, between a cost matrix and between points, as data.

`sinkhorn_inputs` and `sinkhorn_points_inputs` turn one into the arguments of the public function.
Equal case, dtype and seed give equal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkernels.testing.inputs import with_layout

__all__ = [
    "SINKHORN_CASES",
    "SINKHORN_POINTS_CASES",
    "SinkhornCase",
    "SinkhornPointsCase",
    "sinkhorn_inputs",
    "sinkhorn_points_inputs",
]


@dataclass(frozen=True, slots=True)
class SinkhornCase:
    """`iterations` of `sinkhorn` (tol = 0) on squared distances in the unit square.

    masses: "random", "none" (both absent), "zeros" (some are 0), "row" (one a for all problems).
    ragged: `sizes` from 1 to the block. shared: one cost for all. layout: of the cost.
    """

    name: str
    batch: int
    n: int
    m: int
    eps: float = 0.1
    iterations: int = 20
    masses: str = "random"
    rho: float | tuple[float | None, float | None] | None = None
    mode: str = "auto"
    reg_type: str = "kl"
    ragged: bool = False
    shared: bool = False
    layout: str = "contiguous"


@dataclass(frozen=True, slots=True)
class SinkhornPointsCase:
    """`iterations` of `sinkhorn_points` (tol = 0) between clouds around different centres."""

    name: str
    batch: int
    n: int
    m: int
    dim: int
    metric: str = "sqeuclidean"
    eps: float = 0.3
    iterations: int = 20
    masses: str = "random"
    rho: float | tuple[float | None, float | None] | None = None
    ragged: bool = False
    shared: bool = False
    layout: str = "contiguous"


SINKHORN_CASES: tuple[SinkhornCase, ...] = (
    SinkhornCase("small", 3, 5, 4),
    SinkhornCase("no-problem", 0, 5, 4),
    SinkhornCase("one-by-one", 2, 1, 1),
    # Of one row, all potentials share a rounding: only several problems average.
    SinkhornCase("one-row", 5, 1, 7),
    SinkhornCase("one-column", 5, 9, 1),
    SinkhornCase("lanes", 37, 16, 16, masses="none"),
    SinkhornCase("lanes-odd", 19, 31, 13),
    SinkhornCase("rows", 3, 65, 33),
    SinkhornCase("wide", 2, 70, 131),
    SinkhornCase("sharp", 5, 16, 17, eps=0.01, iterations=40),
    SinkhornCase("log", 5, 16, 17, mode="log"),
    SinkhornCase("absorb", 5, 16, 17, mode="absorb"),
    SinkhornCase("unbalanced", 6, 11, 14, rho=1.0),
    SinkhornCase("unbalanced-pair", 6, 40, 14, rho=(0.5, 2.0)),
    SinkhornCase("semi-unbalanced", 6, 11, 14, rho=(0.7, None)),
    SinkhornCase("entropy", 6, 11, 14, reg_type="entropy"),
    SinkhornCase("zero-masses", 6, 11, 14, masses="zeros"),
    SinkhornCase("one-row-of-masses", 6, 11, 14, masses="row"),
    SinkhornCase("shared-cost", 6, 11, 14, shared=True),
    SinkhornCase("ragged", 23, 24, 17, ragged=True),
    SinkhornCase("ragged-unbalanced", 9, 40, 35, ragged=True, rho=1.0),
    SinkhornCase("strided", 4, 9, 12, layout="strided"),
    SinkhornCase("transposed", 4, 9, 12, layout="transposed"),
    SinkhornCase("padded", 4, 9, 12, layout="padded"),
)

SINKHORN_POINTS_CASES: tuple[SinkhornPointsCase, ...] = (
    SinkhornPointsCase("small", 3, 5, 4, 3),
    SinkhornPointsCase("no-problem", 0, 5, 4, 3),
    SinkhornPointsCase("one-by-one", 2, 1, 1, 1),
    SinkhornPointsCase("odd", 2, 67, 33, 5),
    SinkhornPointsCase("euclidean", 2, 35, 40, 7, metric="euclidean"),
    SinkhornPointsCase("cosine", 2, 35, 40, 19, metric="cosine"),
    SinkhornPointsCase("wide", 2, 20, 130, 64, metric="cosine"),
    SinkhornPointsCase("unbalanced", 3, 17, 12, 4, rho=(1.0, 2.0)),
    SinkhornPointsCase("zero-masses", 3, 17, 12, 4, masses="zeros"),
    SinkhornPointsCase("shared", 3, 17, 12, 4, shared=True),
    SinkhornPointsCase("ragged", 5, 17, 12, 4, ragged=True),
    SinkhornPointsCase("transposed", 3, 17, 12, 4, layout="transposed"),
)


def sinkhorn_inputs(
    case: SinkhornCase, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """The keyword arguments of `sinkhorn` (without `grad` and `backend`) for a case.

    >>> inputs = sinkhorn_inputs(SINKHORN_CASES[0])
    >>> [tuple(inputs[name].shape) for name in ("cost", "a", "b")]
    [(3, 5, 4), (3, 5), (3, 4)]
    """
    draw = _Draw(seed)
    batch = 1 if case.shared else case.batch
    x, y = draw.uniform(batch, case.n, 2), draw.uniform(batch, case.m, 2)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1).to(dtype)
    return {
        "cost": with_layout(cost[0] if case.shared else cost, case.layout),
        **_masses(draw, case, dtype),
        "eps": case.eps,
        "rho": case.rho,
        "mode": case.mode,
        "reg_type": case.reg_type,
        "solver": "sinkhorn",
        "max_iter": case.iterations,
        "tol": 0.0,
    }


def sinkhorn_points_inputs(
    case: SinkhornPointsCase, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """The keyword arguments of `sinkhorn_points` (without `grad` and `backend`) for a case.

    >>> sinkhorn_points_inputs(SINKHORN_POINTS_CASES[0])["y"].shape
    torch.Size([3, 4, 3])
    """
    draw = _Draw(seed)
    x = draw.uniform(case.batch, case.n, case.dim)
    y = draw.uniform(1 if case.shared else case.batch, case.m, case.dim) + 0.25
    # Distances of the size of one, whatever the dimension.
    x, y = (t * (2.0 / case.dim) ** 0.5 for t in (x, y))
    return {
        "x": with_layout(x.to(dtype), case.layout),
        "y": (y[0] if case.shared else y).to(dtype),
        **_masses(draw, case, dtype),
        "metric": case.metric,
        "eps": case.eps,
        "rho": case.rho,
        "solver": "sinkhorn",
        "max_iter": case.iterations,
        "tol": 0.0,
    }


class _Draw:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=self.generator)


def _masses(
    draw: _Draw, case: SinkhornCase | SinkhornPointsCase, dtype: torch.dtype
) -> dict[str, Tensor | None]:
    sizes = None
    if case.ragged:
        block = torch.tensor([case.n, case.m])
        sizes = 1 + (draw.uniform(case.batch, 2) * block).long().clamp(max=block - 1)
    a, b = draw.uniform(case.batch, case.n) + 0.1, draw.uniform(case.batch, case.m) + 0.1
    if case.masses == "none":
        return {"a": None, "b": None, "sizes": sizes}
    if case.masses == "row":
        a = a[:1]
    if case.masses == "zeros":
        a[:, ::3] = 0.0
        b[:, 1::4] = 0.0
    rows = []
    for k, mass in enumerate((a, b)):
        if sizes is not None:
            mass = mass * (torch.arange(mass.shape[1]) < sizes[:, k, None])
        mass = mass / mass.sum(1, keepdim=True)
        # Rounded to a half type they no longer add up to the same total.
        rows.append(_in_steps(mass, dtype))
    if case.masses == "row":
        rows[0] = rows[0][0]
    return {"a": rows[0], "b": rows[1], "sizes": sizes}


def _in_steps(mass: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the dtype; for half types multiples of 2^-7 whose sum is exactly 1."""
    if dtype not in (torch.bfloat16, torch.float16):
        return mass.to(dtype)
    units = (mass * 128).floor()
    missing = (128 - units.sum(1, keepdim=True)).long()
    order = (mass * 128 - units).masked_fill(mass == 0, -1.0).argsort(1, descending=True)
    count = (mass != 0).sum(1, keepdim=True).clamp(min=1)
    place = order.argsort(1)
    units = units + torch.where(mass != 0, missing // count + (place < missing % count), 0)
    return (units / 128).to(dtype)
