"""What the tests of the ops share: backends, a call as data, values and gradients of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fedkernels import triple_lora_linear
from fedkernels._extension import is_built, why_not_built
from fedkernels.testing import random_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TENSORS = ("x", "weight", "A", "T", "B", "bias")

needs_extension = pytest.mark.skipif(not is_built(), reason=f"not built: {why_not_built()}")
CPU = pytest.param("cpu", marks=needs_extension)
REFERENCE = pytest.param("reference", marks=pytest.mark.once)  # it has no instruction sets
BACKENDS = (CPU, REFERENCE)


@dataclass
class Call:
    """Arguments of `triple_lora_linear`: tensors by name, and the options."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def y(self, **more: Any) -> Tensor:
        return triple_lora_linear(**self.tensors, **{**self.options, **more})

    def train(self, *names: str) -> Call:
        """The same values as new leaves, of which `names` require gradients."""
        return Call(
            {
                name: None if t is None else t.detach().requires_grad_(name in names)
                for name, t in self.tensors.items()
            },
            self.options,
        )

    def results(self, grad: Tensor | None = None, **more: Any) -> dict[str, Tensor]:
        """y and the gradient of every tensor that requires one, under the same random state."""
        state = torch.get_rng_state()
        y = self.y(**more)
        torch.set_rng_state(state)
        if grad is None:
            grad = random_tensor(y.shape, dtype=y.dtype, seed=77)
        wanted = [n for n, t in self.tensors.items() if t is not None and t.requires_grad]
        grads = torch.autograd.grad(y, [self.tensors[n] for n in wanted], grad) if wanted else ()
        return {"y": y.detach(), **dict(zip(wanted, grads, strict=True))}


def call(
    leading: Sequence[int] = (9,),
    d_in: int = 40,
    d_out: int = 24,
    rank: int = 5,
    *,
    dtype: torch.dtype = torch.float32,
    adapters: torch.dtype | None = None,
    seed: int = 0,
    plain: bool = False,
    a_width: int | None = None,
    b_width: int | None = None,
    **options: Any,
) -> Call:
    """A call with values of the size that a network has; `plain` leaves T out."""

    def values(shape: Sequence[int], number: int, fan_in: int, to: torch.dtype) -> Tensor:
        return random_tensor(
            tuple(shape), dtype=to, seed=100 * seed + number, std=max(fan_in, 1) ** -0.5
        )

    thin = adapters or dtype
    a_width = d_in if a_width is None else a_width
    b_width = d_out if b_width is None else b_width
    tensors = {
        "x": values((*leading, d_in), 1, 1, dtype),
        "weight": values((d_out, d_in), 2, d_in, dtype),
        "A": values((rank, a_width), 3, a_width, thin),
        "T": None if plain else values((rank, rank), 4, rank, thin),
        "B": values((b_width, rank), 5, rank, thin),
        "bias": values((d_out,), 6, 1, dtype),
    }
    return Call(tensors, {"scale": 0.5, **options})


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor], note: object = ""):
    """Equal bit for bit (NaN equals NaN) wherever `actual` has an entry."""
    for name, value in actual.items():
        other = expected[name]
        assert value.dtype == other.dtype and value.shape == other.shape, (name, note)
        same = (value == other) | (value.isnan() & other.isnan())
        assert bool(same.all()), f"{name}: {int((~same).sum())} of {same.numel()} differ {note}"


def with_threads(count: int, run: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)
