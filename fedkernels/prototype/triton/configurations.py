"""Launch configurations, as data. Chosen from compiled code (registers, spills), not on a GPU."""

from __future__ import annotations

from fedkernels._triton import Blocks

# Rows (BI), prototypes (BJ) and features (BK) of a block.
PREPARE = Blocks(BI=32, BJ=1, BK=64, warps=4, stages=1)
DISTANCE = Blocks(BI=64, BJ=64, BK=16, warps=8, stages=2)
ASSIGN = Blocks(BI=64, BJ=64, BK=16, warps=8, stages=2)
SOFTMAX = Blocks(BI=64, BJ=64, BK=16, warps=8, stages=2)

# Rows and columns of a block of weights whose pairs are all there.
WEIGHTS = Blocks(BI=16, BJ=128, BK=64, warps=4, stages=1)

# Own entries (BI), entries of the other side (BJ) and features (BK) of a block of a gradient.
ROWS = Blocks(BI=64, BJ=16, BK=64, warps=8, stages=2)
COLUMNS = Blocks(BI=64, BJ=16, BK=64, warps=8, stages=2)
TARGETS = Blocks(BI=64, BJ=64, BK=1, warps=4, stages=1)
CLASSES = Blocks(BI=64, BJ=16, BK=64, warps=8, stages=2)
COMBINE = Blocks(BI=8, BJ=1, BK=64, warps=4, stages=1)
COLUMN_SUMS = Blocks(BI=64, BJ=16, BK=1, warps=4, stages=1)

# Pairs whose weights are held at a time (32 MiB), and partial gradients (32 MiB as float64).
WEIGHT_CELLS = 2**23
PARTIAL_CELLS = 2**22
# Splits of a stripe of rows: enough programs for a GPU, and sums short enough for float32. They
# follow the shapes alone, so that the bits are the same on every GPU.
PROGRAMS = 512
SPLIT_ROWS = 1024
SORTED_FROM = 257  # classes, from which on their rows are sorted before they are added

# Entries that a program takes at a time where there is no product.
CHUNK = 1024
