"""The same run over seeds and rows: one table with means and paired intervals.

>>> from python_api.sweep import Grid, Row
>>> Grid(seeds=(0, 1), rows=(Row("shared"), Row("alone", {"algorithm": "local"}))).metric
'accuracy'
"""

from python_api.sweep.bootstrap import interval
from python_api.sweep.collate import Difference, Summary, collate
from python_api.sweep.drive import Sweep, run_plans, sweep
from python_api.sweep.grid import Grid, Row, load_grid
from python_api.sweep.plan import Plan, make_plan
from python_api.sweep.table import markdown

__all__ = [
    "Difference",
    "Grid",
    "Plan",
    "Row",
    "Summary",
    "Sweep",
    "collate",
    "interval",
    "load_grid",
    "make_plan",
    "markdown",
    "run_plans",
    "sweep",
]
