"""Files and generators to examples: `load_task`, `builtin_task`, `read_rows`."""

from __future__ import annotations

from python_api.data.builtin import builtin_task
from python_api.data.loaders import read_rows, write_rows
from python_api.data.task import Example, TaskData, load_task, task_from_rows

__all__ = [
    "Example",
    "TaskData",
    "builtin_task",
    "load_task",
    "read_rows",
    "task_from_rows",
    "write_rows",
]
