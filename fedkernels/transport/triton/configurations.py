"""Launch configurations, as data. Chosen from compiled code (registers, spills), not on a GPU."""

from __future__ import annotations

from fedkernels._triton import Blocks

# Register classes: a side of a problem is padded to one of these.
EXTENTS = (8, 16, 32, 64, 128)

# Cells of one problem (padded rows * columns) -> problems per program, warps.
REGISTERS: dict[int, tuple[int, int]] = {
    64: (4, 1),
    128: (2, 1),
    256: (2, 1),
    512: (1, 1),
    1024: (1, 2),
    2048: (1, 4),
    4096: (1, 8),
    8192: (1, 8),
    16384: (1, 16),
}


# Streaming from a cost matrix.
MATRIX = Blocks(BI=32, BJ=128, BK=16, warps=4, stages=2)

# From points, by the size of a problem's longer side: small problems waste less in small blocks.
# BK is cut to the padded number of features.
UNBOUNDED = 2**31 - 1
POINTS: tuple[tuple[int, Blocks], ...] = (
    (32, Blocks(BI=16, BJ=32, BK=32, warps=1, stages=2)),
    (UNBOUNDED, Blocks(BI=64, BJ=64, BK=32, warps=4, stages=2)),
)

# Longer sides up to here are iterated by one program, which leaves as soon as its problem is done.
ONE_PROGRAM = 512

# Entries of a vector that a program takes at a time.
CHUNK = 512

# Rows of points that a program centres at a time.
CENTRE = Blocks(BI=64, BJ=1, BK=32, warps=4, stages=1)

# Plans and their products: one configuration for all sizes, so that no bit follows the batch.
PLAN = Blocks(BI=32, BJ=128, BK=32, warps=4, stages=2)
PLAN_CELLS = 2048  # of a block of a plan from a matrix
MATRIX_APPLY = Blocks(BI=64, BJ=64, BK=16, warps=4, stages=2)
APPLY = Blocks(BI=64, BJ=64, BK=32, warps=4, stages=2)
BACKWARD = Blocks(BI=64, BJ=64, BK=32, warps=8, stages=2)

CONDITIONAL = Blocks(BI=64, BJ=64, BK=32, warps=4, stages=2)
CONDITIONAL_GRADIENT = Blocks(BI=64, BJ=32, BK=32, warps=8, stages=2)

# Columns of the right-hand side, or features of a gradient, that a program takes at a time.
COLUMNS = 64
