"""Launches of products with the plan, for a cost matrix and for points."""

from __future__ import annotations

from torch import Tensor

from fedkernels._triton import PRECISION, Blocks, launch
from fedkernels.transport.triton.configurations import COLUMNS
from fedkernels.transport.triton.plan import apply_plan
from fedkernels.transport.triton.solve import Source, stride


def product(
    source: Source,
    blocks: Blocks,
    eps: Tensor,
    sizes: Tensor | None,
    u: Tensor,
    v: Tensor,
    V: Tensor,
    transpose: bool,
) -> Tensor:
    """P V for V (B, m, d), or P^T V for V (B, n, d)."""
    own, other = (v, u) if transpose else (u, v)
    (batch, n), m, width = own.shape, other.shape[1], V.shape[2]
    side = source.turned() if transpose else source
    new = u.new_empty if sizes is None else u.new_zeros
    out = new((batch, n, width))
    BD = 1 if width == 1 else min(max(16, 1 << (width - 1).bit_length()), COLUMNS)
    row_blocks, column_blocks = -(-n // blocks.BI), -(-width // BD)
    launch(
        apply_plan, batch * row_blocks * column_blocks, u, *side.sides, eps, sizes, own, other, V,
        out, n, m, width, *side.steps, row_blocks, column_blocks, stride(eps), COLUMN=transpose,
        HAS_SIZES=sizes is not None, SOURCE=source.kind, BI=blocks.BI, BJ=blocks.BJ, BK=blocks.BK,
        BD=BD, PRECISION=PRECISION, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out
