"""Benchmarks of fedkernels, as data: what is measured, against whom, and what passed its gate.

`registry` holds one entry per op, `peers` what it is compared with, `run.py` the gate and the
clock, `table.py` the tables. Installed as `fedkernels_benchmarks`; in a checkout also `benchmarks`.
"""

from __future__ import annotations

from .run import Row, families, read_rows, run_family, write_rows
from .table import geometric_mean, markdown_table, print_table

__all__ = [
    "Row",
    "families",
    "geometric_mean",
    "markdown_table",
    "print_table",
    "read_rows",
    "run_family",
    "write_rows",
]
