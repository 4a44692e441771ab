"""The Sinkhorn kernels as functions of tensors, and problems to solve with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedkernels.transport.reference import sinkhorn_forward, sinkhorn_plan
from tests.cuda_host.build import Program

SOURCE = Path(__file__).parent / "kernels" / "sinkhorn.cpp"
NAMES = ("value", "linear", "f", "g", "u", "v", "r", "c", "n_iter", "error", "status")
VECTORS = NAMES[2:8]
BALANCED = (math.inf, math.inf)


@dataclass(frozen=True)
class Problems:
    """The arguments of sinkhorn_forward."""

    cost: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    eps: Tensor | float = 0.05
    sizes: Tensor | None = None
    g0: Tensor | None = None
    batch: int | None = None
    rho: tuple[float, float] = BALANCED
    max_iter: int = 40
    tol: float = 0.0
    log: bool = False
    sor: bool = False

    @property
    def B(self) -> int:
        return len(self.cost) if self.batch is None else self.batch

    @property
    def eps64(self) -> Tensor:
        return torch.as_tensor(self.eps, dtype=torch.float64).reshape(-1)

    def with_(self, **changes) -> Problems:
        return replace(self, **changes)

    def reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        cost, a, b, g0 = (
            None if t is None else t.to(dtype) for t in (self.cost, self.a, self.b, self.g0)
        )
        results = sinkhorn_forward(
            cost, a, b, self.eps64, self.sizes, g0, self.B, *self.rho, self.max_iter, self.tol,
            self.log, self.sor,
        )  # fmt: skip
        return dict(zip(NAMES, results, strict=True))

    def plan(self, found: dict[str, Tensor]) -> Tensor:
        """Of the reference, in the dtype of what it found."""
        cost = self.cost.to(found["u"].dtype)
        return sinkhorn_plan(cost, self.eps64, self.sizes, found["u"], found["v"], None)


def _stride(t: Tensor | None, batch: int) -> int:
    return 0 if t is None or len(t) == 1 else t.numel() // batch


def solve(program: Program, q: Problems, *, order: str = "ascending") -> dict[str, Tensor]:
    """What the kernels leave, in memory that was NaN."""
    batch, (n, m) = q.B, q.cost.shape[1:]
    shapes = [(batch,)] * 2 + [(batch, n), (batch, m)] * 3
    found = dict(zip(NAMES[:8], (torch.full(s, math.nan) for s in shapes), strict=True))
    found["n_iter"] = torch.full((batch,), -7, dtype=torch.int32)
    found["error"] = torch.full((batch,), math.nan)
    found["status"] = torch.full((batch,), 99, dtype=torch.uint8)
    size = torch.zeros(1, dtype=torch.int64)
    program.call("sinkhorn_scratch", batch, n, m, size)
    scratch = torch.full((int(size) + 256,), 255, dtype=torch.uint8)
    scratch = scratch[-scratch.data_ptr() % 256 :][: int(size)]
    program.call(
        "sinkhorn_forward",
        q.cost, _stride(q.cost, batch), q.a, _stride(q.a, batch), q.b, _stride(q.b, batch),
        q.eps64, _stride(q.eps64, batch), q.sizes, q.g0, _stride(q.g0, batch), batch, n, m,
        float(q.rho[0]), float(q.rho[1]), q.max_iter, float(q.tol), int(q.log), int(q.sor),
        *(found[name] for name in NAMES), scratch, order=order,
    )  # fmt: skip
    return found


def plan(
    program: Program, q: Problems, found: dict[str, Tensor], scale: Tensor | None = None
) -> Tensor:
    batch, (n, m) = q.B, q.cost.shape[1:]
    result = torch.full((batch, n, m), math.nan)
    program.call(
        "sinkhorn_plan", q.cost, _stride(q.cost, batch), q.eps64, _stride(q.eps64, batch), q.sizes,
        found["u"], found["v"], scale, batch, n, m, result,
    )  # fmt: skip
    return result


def apply(
    program: Program, q: Problems, found: dict[str, Tensor], V: Tensor, transpose: bool
) -> Tensor:
    batch, (n, m) = q.B, q.cost.shape[1:]
    result = torch.full((batch, m if transpose else n, V.shape[2]), math.nan)
    program.call(
        "sinkhorn_apply", q.cost, _stride(q.cost, batch), q.eps64, _stride(q.eps64, batch), q.sizes,
        found["u"], found["v"], V, int(transpose), batch, n, m, V.shape[2], result,
    )  # fmt: skip
    return result


def random_problems(batch: int, n: int, m: int, seed: int = 0, **options) -> Problems:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, n, m, generator=generator)
    a, b = (torch.rand(batch, k, generator=generator) + 0.1 for k in (n, m))
    sizes = options.get("sizes")
    if sizes is not None:  # the masses of each problem's own part are what must be equal
        a, b = (t * (torch.arange(t.shape[1]) < sizes[:, i, None]) for i, t in ((0, a), (1, b)))
    a, b = (t / t.sum(1, keepdim=True).clamp(min=0.1) for t in (a, b))
    return Problems(cost, a, b, **options)


def alone(q: Problems, k: int) -> Problems:
    """Problem k without its neighbours and without padding."""
    n, m = q.cost.shape[1:] if q.sizes is None else q.sizes[k].tolist()

    def own(t: Tensor | None, *extents: int) -> Tensor | None:
        if t is None:
            return None
        t = t[k : k + 1] if len(t) > 1 else t
        return t[tuple(slice(0, extent) for extent in (1, *extents))].contiguous()

    eps = q.eps64[k : k + 1] if len(q.eps64) > 1 else q.eps64
    return q.with_(
        cost=own(q.cost, n, m), a=own(q.a, n), b=own(q.b, m), g0=own(q.g0, m), eps=eps,
        sizes=None, batch=1,
    )  # fmt: skip
