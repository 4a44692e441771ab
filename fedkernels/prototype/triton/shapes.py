"""What the launches share: constants of a kernel with products, and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkernels._triton import PRECISION, Blocks, padded


def options_of(blocks: Blocks, metric: int, D: int) -> dict[str, Any]:
    """What the kernels with products take as constants."""
    return {
        "METRIC": metric,
        "BI": blocks.BI,
        "BJ": blocks.BJ,
        "BK": padded(D, blocks.BK),
        "PRECISION": PRECISION,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def bytes_of(mask: Tensor | None, first: int, last: int) -> Tensor | None:
    """The rows of a boolean mask as the kernels read them; (1, K) is every row's."""
    if mask is None:
        return None
    return (mask if row_stride(mask) == 0 else mask[first:last]).view(torch.uint8)


def row_stride(mask: Tensor | None) -> int:
    """0 for a mask that all rows share."""
    return 0 if mask is None or len(mask) == 1 else mask.shape[1]
