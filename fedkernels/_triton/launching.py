"""The launch, and what a configuration is made of."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["PRECISION", "Blocks", "largest_grid", "launch", "padded", "split_double"]

# Products faithful to float32 on tensor cores.
PRECISION = "tf32x3"

largest_grid = 2**31 - 1  # of the x axis; y and z hold 65,535, so every launch uses x alone


class Blocks(NamedTuple):
    """Blocks of own entries (BI), other entries (BJ) and features (BK), warps, stages."""

    BI: int
    BJ: int
    BK: int
    warps: int
    stages: int


def padded(extent: int, largest: int) -> int:
    """The power of two from 16 (the least that a product takes) to `largest` that holds extent."""
    return min(max(16, 1 << max(extent - 1, 0).bit_length()), largest)


def split_double(value: float) -> tuple[float, float]:
    """Two float32 numbers whose sum is `value` to 48 bits: launches pass floats as float32.

    >>> high, low = split_double(0.1)
    >>> high + low == 0.1, split_double(float("inf"))
    (True, (inf, 0.0))
    """
    if math.isinf(value):
        return value, 0.0
    value = min(value, 3e38)  # beyond the range of float32 nothing changes any more
    (high,) = struct.unpack("f", struct.pack("f", value))
    return high, value - high


def launch(
    kernel: Any, programs: int, on: Tensor, *args: Any, num_warps: int, num_stages: int, **meta: Any
) -> None:
    """Runs `kernel` with `programs` programs along x on the device of `on`; none is legal."""
    if programs == 0:
        return
    if programs > largest_grid:
        raise ValueError(f"a launch of {programs} programs: at most {largest_grid} are possible")
    # Fused multiply-add is part of the results' definition; Triton 3.10 changes the default.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if on.is_cuda:
        with torch.cuda.device(on.device):
            kernel[(programs,)](*args, **meta, **options)
    else:
        kernel[(programs,)](*args, **meta, **options)
