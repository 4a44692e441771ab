"""Problems, and the comparison of a Triton primitive with the reference.

FEDKERNELS_TRITON_DEVICE=cuda runs the kernels of the same tests on a GPU.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkernels.prototype import reference as prototype_reference
from fedkernels.prototype import triton as prototype_triton
from fedkernels.testing import assert_within_budget
from fedkernels.transport import reference, triton

DEVICE = os.environ.get("FEDKERNELS_TRITON_DEVICE", "cpu")
BAND = 64  # elements before and behind whatever a launcher allocates
MARK = 77
RESULTS = ("value", "linear", "f", "g", "u", "v", "r", "c", "n_iter", "error", "status")


def masses(batch: int, extent: int, sizes: Tensor | None, side: int, seed: int) -> Tensor:
    """Random masses with total 1, NaN in the padding: it must never be read."""
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(batch, extent, generator=generator) + 0.1
    if sizes is not None:
        mass[torch.arange(extent) >= sizes[:, side, None]] = 0.0
    mass /= mass.sum(1, keepdim=True).clamp(min=1e-30)
    if sizes is not None:
        mass[torch.arange(extent) >= sizes[:, side, None]] = math.nan
    return mass


def matrix_problem(batch: int, n: int, m: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments of sinkhorn_forward, in order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = more.get("sizes")
    cost = torch.rand(batch, n, m, generator=generator) * 2
    if sizes is not None:
        outside = torch.arange(n)[:, None] >= sizes[:, 0, None, None]
        cost[outside | (torch.arange(m) >= sizes[:, 1, None, None])] = math.nan
    call: dict[str, Any] = {
        "cost": cost,
        "a": masses(batch, n, sizes, 0, seed + 1),
        "b": masses(batch, m, sizes, 1, seed + 2),
        "eps": torch.full((batch,), 0.05, dtype=torch.float64),
        "sizes": None,
        "g0": None,
        "batch": batch,
        "rho_a": math.inf,
        "rho_b": math.inf,
        "max_iter": 5,
        "tol": 0.0,
        "log": False,
        "sor": False,
    }
    return call | more


def points_problem(
    batch: int, n: int, m: int, D: int, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """Arguments of sinkhorn_points_forward, in order; the points lie far from 0."""
    generator = torch.Generator().manual_seed(seed)
    sizes = more.get("sizes")
    scale = 0.7 / math.sqrt(max(D, 1))
    x, y = (torch.randn(batch, k, D, generator=generator) * scale + 3 * scale for k in (n, m))
    if sizes is not None:
        x[torch.arange(n) >= sizes[:, 0, None]] = math.nan
        y[torch.arange(m) >= sizes[:, 1, None]] = math.nan
    call: dict[str, Any] = {
        "x": x,
        "y": y,
        "a": masses(batch, n, sizes, 0, seed + 1),
        "b": masses(batch, m, sizes, 1, seed + 2),
        "eps": torch.full((batch,), 0.1, dtype=torch.float64),
        "sizes": None,
        "g0": None,
        "batch": batch,
        "metric": 0,
        "rho_a": math.inf,
        "rho_b": math.inf,
        "max_iter": 3,
        "tol": 0.0,
        "sor": False,
        "symmetric": False,
    }
    return call | more


def wide(values: Sequence[Any]) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for v in values]


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within the block a launcher's tensors lie between marked bands and hold NaN (integers: the
    mark) until they are written; a kernel that writes outside is found out at the end."""
    bands: list[Tensor] = []
    kept = torch.Tensor.new_empty, torch.Tensor.new_zeros

    def allocate(self: Tensor, *size: Any, fill: float | None = None, **options: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and isinstance(size[0], tuple) else size
        count = math.prod(shape)
        buffer = kept[0](self, count + 2 * BAND, **options).fill_(MARK)
        bands.extend((buffer[:BAND], buffer[BAND + count :]))
        inside = buffer[BAND : BAND + count].view(shape)
        if fill is None and buffer.dtype.is_floating_point:
            fill = math.nan
        return inside if fill is None else inside.fill_(fill)

    torch.Tensor.new_empty = allocate  # type: ignore[method-assign]
    torch.Tensor.new_zeros = lambda self, *size, **options: allocate(  # type: ignore
        self, *size, fill=0.0, **options
    )
    try:
        yield
    finally:
        torch.Tensor.new_empty, torch.Tensor.new_zeros = kept  # type: ignore[method-assign]
    assert all(bool((band == MARK).all()) for band in bands), "written outside of a tensor"


def run(name: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """A Triton primitive on DEVICE, its results on the CPU."""
    arguments = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments]
    family = triton if hasattr(triton, name) else prototype_triton
    with guarded():
        found = getattr(family, name)(*arguments)
    return tuple(one.cpu() for one in ((found,) if isinstance(found, Tensor) else found))


def results_of(call: dict[str, Any]) -> dict[str, Tensor]:
    """The eleven results of the forward function that takes `call`."""
    return dict(zip(RESULTS, run(forward_of(call), list(call.values())), strict=True))


def forward_of(call: dict[str, Any]) -> str:
    return "sinkhorn_points_forward" if "metric" in call else "sinkhorn_forward"


def compare(call: dict[str, Any]) -> dict[str, Tensor]:
    """Every result within the error budget of the reference; counts and statuses the same.

    `error` is a difference of nearly equal marginals: its budget is that of r.
    """
    specification = getattr(reference, forward_of(call))
    values = list(call.values())
    actual = results_of(call)
    base = dict(zip(RESULTS, specification(*values), strict=True))
    exact = dict(zip(RESULTS, specification(*wide(values)), strict=True))
    assert torch.equal(actual["status"], base["status"]), (actual["status"], base["status"])
    assert torch.equal(actual["n_iter"], base["n_iter"]), (actual["n_iter"], base["n_iter"])
    # Potentials together, and as one row: those of one side or one problem may all be near 0.
    for keys in (("value",), ("linear",), ("f", "g"), ("u", "v"), ("r", "c")):
        rows = (
            torch.cat([found[key].flatten() for key in keys]) for found in (actual, base, exact)
        )
        assert_within_budget(*rows, name=" and ".join(keys))
    good = actual["error"].isfinite()
    assert torch.equal(good, base["error"].isfinite())
    spread = (actual["error"].double() - exact["error"])[good].abs()
    allowed = 2 * ((base["error"].double() - exact["error"])[good].abs() + 2.0**-23 * 8)
    assert (spread <= allowed).all(), (spread, allowed)
    return actual


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, NaN equal to NaN."""
    return one.shape == other.shape and bool(
        ((one == other) | (one != one) & (other != other)).all()
    )


def compare_primitive(name: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """The results of a primitive, each within budget of the reference; integers are the same."""
    actual = run(name, arguments)
    specification = getattr(reference if hasattr(reference, name) else prototype_reference, name)
    base, exact = specification(*arguments), specification(*wide(arguments))
    if isinstance(base, Tensor):
        base, exact = (base,), (exact,)
    for k, (got, narrow, true) in enumerate(zip(actual, base, exact, strict=True)):
        if got.dtype.is_floating_point:
            assert_within_budget(got, narrow, true, name=f"{name}[{k}]")
        else:
            assert torch.equal(got, narrow), (f"{name}[{k}]", got, narrow)
    return actual
