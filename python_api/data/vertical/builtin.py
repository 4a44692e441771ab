"""Tables of scikit-learn that need no network, cut into views: one per party.

| table | rows | columns | label |
| --- | --- | --- | --- |
| `builtin:digits` | 1797 | pixels `p00` ... `p77`, row by row | `digit`: 0 to 9 |
| `builtin:breast_cancer` | 569 | 30 measures | `diagnosis`: malignant, benign |
| `builtin:wine` | 178 | 13 measures | `cultivar`: 0, 1, 2 |

`?views=2&view=1` is the first of two views: the left half of every digit, the first half of the
columns. digits also has `views=4`, its quadrants. Every view has the columns `id` and the label.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from python_api.data.loaders import Rows
from python_api.errors import InputError

__all__ = ["BuiltinTable", "parse_table", "read_builtin"]

LABELS = {"digits": "digit", "breast_cancer": "diagnosis", "wine": "cultivar"}
VIEWS = {"digits": (1, 2, 4), "breast_cancer": (1, 2), "wine": (1, 2)}
SIDE = 8  # of a digit, in pixels


@dataclass(frozen=True)
class BuiltinTable:
    """name: without `builtin:`. view: from 1 to views."""

    name: str
    views: int
    view: int

    @property
    def label(self) -> str:
        """The label column."""
        return LABELS[self.name]


def parse_table(table: str) -> BuiltinTable:
    """`"builtin:digits?views=2&view=1"` in its parts.

    >>> parse_table("builtin:digits?views=2&view=1")
    BuiltinTable(name='digits', views=2, view=1)
    """
    bare, _, query = table.removeprefix("builtin:").partition("?")
    if bare not in LABELS:
        near = difflib.get_close_matches(bare, LABELS, 1)
        hint = f"nearest known: {near[0]}" if near else f"expected one of {', '.join(LABELS)}"
        raise InputError(f"no built-in table {table!r}; {hint}")
    given = {"views": 1, "view": 1}
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key not in given or not value.isdecimal():
            raise InputError(f"{table!r}: {item!r}; expected views=N and view=N")
        given[key] = int(value)
    if given["views"] not in VIEWS[bare]:
        known = ", ".join(map(str, VIEWS[bare]))
        raise InputError(f"{table!r}: views={given['views']}; expected one of {known}")
    if not 1 <= given["view"] <= given["views"]:
        raise InputError(f"{table!r}: view={given['view']}; expected 1 to {given['views']}")
    return BuiltinTable(bare, given["views"], given["view"])


@lru_cache(maxsize=8)
def read_builtin(table: str) -> Rows:
    """The rows of a built-in table, as texts, like those of a file.

    Raises:
        InputError: no such table, or scikit-learn is not installed.

    >>> list(read_builtin("builtin:wine?views=2&view=2")[0])[:3]
    ['id', 'nonflavanoid_phenols', 'proanthocyanins']
    """
    asked = parse_table(table)
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError(
            f"{table}: needs scikit-learn; expected pip install 'fedkernels[run]'"
        ) from None
    bunch: Any = getattr(datasets, f"load_{asked.name}")()
    if asked.name == "digits":
        names = [f"p{row}{column}" for row in range(SIDE) for column in range(SIDE)]
        kept = [index for index in range(SIDE * SIDE) if _view_of(index, asked) == asked.view]
        labels = [str(target) for target in bunch.target]
    else:
        names = [str(name).replace(" ", "_") for name in bunch.feature_names]
        half = -(-len(names) // asked.views)
        kept = list(range(len(names)))[(asked.view - 1) * half : asked.view * half]
        labels = [str(bunch.target_names[target]) for target in bunch.target]
    labels = [label.removeprefix("class_") for label in labels]
    rows = [
        {"id": str(number)}
        | {names[index]: f"{values[index]:g}" for index in kept}
        | {asked.label: label}
        for number, (values, label) in enumerate(zip(bunch.data.tolist(), labels, strict=True), 1)
    ]
    return Rows(Path(table), rows, range(1, len(rows) + 1))


def _view_of(pixel: int, asked: BuiltinTable) -> int:
    """Left to right, then down, from 1."""
    row, column = divmod(pixel, SIDE)
    right, low = int(column >= SIDE // 2), int(row >= SIDE // 2)
    return 1 + {1: 0, 2: right, 4: 2 * low + right}[asked.views]
