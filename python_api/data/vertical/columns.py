"""From a party's columns, as texts, to numbers: fitted on its own training rows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from python_api.data.loaders import Rows
from python_api.data.words import listed
from python_api.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CATEGORIES", "Columns", "is_missing", "survey"]

CATEGORIES = 32  # the most that one column may have
MISSING = {"", "na", "nan", "null", "<na>"}  # in lower case
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
MOSTLY = 0.9  # of a column's values that are numbers: then text among them is a slip
RARE = 0.01  # of the training rows: rarer categories share one column
SHOWN = 0.01  # of the training rows that lack a value: from there on a column says which
LARGE = 1e100  # the sum of squares of larger values may not fit a float
FAR = 10.0  # standard deviations; farther values are cut to it


@dataclass(frozen=True)
class Output:
    """One column of numbers: (value - mean) / scale."""

    name: str
    mean: float
    scale: float


@dataclass(frozen=True)
class Number:
    """A column of numbers. value: None where it is constant and left out."""

    source: str
    value: Output | None
    missing: Output | None

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(made for made in (self.value, self.missing) if made is not None)

    def encode(self, texts: Sequence[str | None]) -> list[list[float]]:
        found = []
        if self.value is not None:
            mean = self.value.mean  # what is missing becomes 0
            found.append([mean if text is None else float(text) for text in texts])
        if self.missing is not None:
            found.append([float(text is None) for text in texts])
        return found


@dataclass(frozen=True)
class Category:
    """A column of texts, one-hot. groups: text -> output; None stands for a missing value.

    rest: the output of rare and unknown values, if there were rare ones in training.
    """

    source: str
    groups: dict[str, int]
    missing: int | None
    rest: int | None
    outputs: tuple[Output, ...]

    def encode(self, texts: Sequence[str | None]) -> list[list[float]]:
        found = [[0.0] * len(texts) for _ in self.outputs]
        for row, text in enumerate(texts):
            place = self.missing if text is None else self.groups.get(text, self.rest)
            if place is not None:
                found[place][row] = 1.0
        return found


@dataclass(frozen=True)
class Columns:
    """A party's columns as they were in its training rows.

    Numbers are standardised, a missing one becomes the mean. Texts are one-hot, each of their
    columns standardised too; rare and unknown values share one. Constant columns are left out.

    >>> table = [("30", "Rome"), ("50", "Oslo"), ("", "Oslo")]
    >>> rows = [{"age": age, "city": city} for age, city in table]
    >>> columns = Columns.fit(rows, {"age": "number", "city": "category"})
    >>> columns.names
    ('age', 'age missing', 'city=Oslo', 'city=Rome')
    >>> columns.encode([{"age": "NA", "city": "Oslo"}])[0, 0].item()
    0.0
    """

    parts: tuple[Number | Category, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """One name per number that `encode` gives."""
        return tuple(output.name for part in self.parts for output in part.outputs)

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns of the table that are read."""
        return tuple(part.source for part in self.parts)

    @classmethod
    def fit(
        cls,
        rows: Sequence[Mapping[str, str]],
        kinds: Mapping[str, str],
        *,
        keep_constant: bool = False,
    ) -> Columns:
        """kinds: column -> "number" or "category" (`survey`).

        keep_constant: one output per column whatever its values, as the pixels of an image need.
        """
        parts: list[Number | Category] = []
        constant = []
        for source, kind in kinds.items():
            texts = [_value(row, source) for row in rows]
            part: Number | Category
            if kind == "number":
                part = _number(source, texts, keep_constant)
            else:
                part = _category(source, texts)
            if part.outputs:
                parts.append(part)
            else:
                constant.append(source)
        notes = []
        if constant:
            verb = "is" if len(constant) == 1 else "are"
            notes.append(f"{listed(constant)} {verb} constant in its training rows and left out")
        return cls(tuple(parts), tuple(notes))

    def encode(self, rows: Sequence[Mapping[str, str]]) -> Tensor:
        """float32 (rows, names).

        Raises:
            InputError: a column that no row has, or a text where numbers were in training.
        """
        import torch

        outputs = [output for part in self.parts for output in part.outputs]
        values: list[list[float]] = []
        for part in self.parts:
            self._has(part.source, rows)
            texts = [_value(row, part.source) for row in rows]
            if isinstance(part, Number):
                _numbers_only(part.source, texts, rows)
            values += part.encode(texts)
        if not rows:
            return torch.zeros(0, len(outputs))
        mean = torch.tensor([output.mean for output in outputs], dtype=torch.float64)
        scale = torch.tensor([output.scale for output in outputs], dtype=torch.float64)
        table = torch.tensor(values, dtype=torch.float64).T
        return ((table - mean) / scale).clamp(-FAR, FAR).float().contiguous()

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds; `from_dict` gives it back."""
        kinds = {Number: "number", Category: "category"}
        return {"parts": [{"kind": kinds[type(part)], **asdict(part)} for part in self.parts]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Columns:
        """The columns that `to_dict` wrote."""
        return cls(tuple(_part(dict(part)) for part in values["parts"]))

    @staticmethod
    def _has(source: str, rows: Sequence[Mapping[str, str]]) -> None:
        known = source in rows.names if isinstance(rows, Rows) else any(source in r for r in rows)
        if rows and not known:
            names = rows.names if isinstance(rows, Rows) else {key for row in rows for key in row}
            where = f"{rows.path}" if isinstance(rows, Rows) else "rows"
            raise InputError(f"{where}: no column {source!r}; found {listed(sorted(names))}")


def is_missing(text: str | None) -> bool:
    """Nothing, blanks, NA, NaN, null, in any case.

    >>> is_missing(" NA "), is_missing("0")
    (True, False)
    """
    return text is None or text.strip().lower() in MISSING


def survey(
    rows: Rows, columns: Sequence[str], categorical: Sequence[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """(column -> "number" or "category", column -> values that are missing), by all rows.

    Numbers are columns all of whose values are numbers and that are not named in `categorical`.

    Raises:
        InputError: a text among numbers, an infinite number, or more than `CATEGORIES` texts.
    """
    kinds, missing = {}, {}
    for column in columns:
        texts = [_value(row, column) for row in rows]
        kinds[column] = _kind(rows, column, texts, column in categorical)
        missing[column] = sum(text is None for text in texts)
    return kinds, missing


def _kind(rows: Rows, column: str, texts: Sequence[str | None], forced: bool) -> str:
    given = [text for text in texts if text is not None]
    if not forced and _all_numbers(given):
        return "number"
    numbers = [text for text in given if NUMBER.fullmatch(text)]
    for index, text in enumerate(texts):
        if text is not None and not forced and _infinite(text):
            raise InputError(f"{rows.where(index)}: {column} = {text!r}; expected a finite number")
    if not forced and len(numbers) >= MOSTLY * len(given):
        index = next(i for i, t in enumerate(texts) if t is not None and not NUMBER.fullmatch(t))
        raise InputError(
            f"{rows.where(index)}: {column} = {texts[index]!r} among numbers; expected a number, "
            f"nothing, NA, NaN or null; or categorical = [{_quoted(column)}] in its [[party]]"
        )
    several = len(set(given))
    if several > CATEGORIES:
        raise InputError(
            f"{rows.path}: column {column!r} has {several} different texts; expected at most "
            f"{CATEGORIES}: name other columns in features, or group its values"
        )
    return "category"


def _all_numbers(given: Sequence[str]) -> bool:
    """Whether all are finite numbers; the common case, without a look at each."""
    try:
        finite = all(map(math.isfinite, map(float, given)))
    except ValueError:
        return False
    return finite and "_" not in "".join(given)  # Python's 1_000


def _infinite(text: str) -> bool:
    """`inf`, and what is too large for a float: 1e999."""
    if NUMBER.fullmatch(text):
        return math.isinf(float(text))
    return INFINITE.fullmatch(text) is not None


def _value(row: Mapping[str, str], column: str) -> str | None:
    text = row.get(column)
    if text is None:
        return None
    text = str(text).strip()
    return None if text.lower() in MISSING else text


def _numbers_only(
    source: str, texts: Sequence[str | None], rows: Sequence[Mapping[str, str]]
) -> None:
    if _all_numbers([text for text in texts if text is not None]):
        return
    for index, text in enumerate(texts):
        if text is not None and (not NUMBER.fullmatch(text) or _infinite(text)):
            where = rows.where(index) if isinstance(rows, Rows) else f"row {index + 1}"
            raise InputError(f"{where}: {source} = {text!r}; expected a finite number")


def _number(source: str, texts: Sequence[str | None], keep_constant: bool) -> Number:
    values = [float(text) for text in texts if text is not None]
    lost = len(texts) - len(values)
    made = _standard(source, values)
    if made is None and keep_constant:
        made = Output(source, values[0] if values else 0.0, 1.0)
    shown = None
    if lost > SHOWN * len(texts) and not keep_constant:
        shown = _share(f"{source} missing", lost, len(texts))
    return Number(source, made, shown)


def _category(source: str, texts: Sequence[str | None]) -> Category:
    counts = Counter(texts)
    total = len(texts)
    least = max(2.0, RARE * total) if total >= 20 else 1.0  # few rows: every value counts
    rare = {text for text, count in counts.items() if count < least}
    kept = sorted(text for text in counts if text not in rare and text is not None)
    names: list[tuple[str, int]] = [(f"{source}={text}", counts[text]) for text in kept]
    if None in counts and None not in rare:
        names.append((f"{source} missing", counts[None]))
    left = sum(counts[text] for text in rare)
    if left:
        names.append((f"{source} other", left))
    outputs = [_share(name, count, total) for name, count in names]
    if any(output is None for output in outputs):  # one value in all rows
        return Category(source, {}, None, None, ())
    groups = {text: place for place, text in enumerate(kept)}
    rest = len(names) - 1 if left else None
    if None not in counts:
        missing = None
    else:
        missing = rest if None in rare else len(kept)
    return Category(source, groups, missing, rest, tuple(o for o in outputs if o is not None))


def _standard(name: str, values: Sequence[float]) -> Output | None:
    """None where all values are equal."""
    if not values or min(values) == max(values):
        return None
    most = max(map(abs, values))
    if most > LARGE:  # the squares would be no floats any more
        small = _standard(name, [value / most for value in values])
        return small and Output(name, small.mean * most, small.scale * most)
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return Output(name, mean, spread) if spread > 0 else None


def _share(name: str, count: int, total: int) -> Output | None:
    """0 or 1, standardised; None where all rows have the same."""
    share = count / total if total else 0.0
    return Output(name, share, math.sqrt(share * (1 - share))) if 0 < share < 1 else None


def _part(values: dict[str, Any]) -> Number | Category:
    def output(found: Mapping[str, Any] | None) -> Output | None:
        return None if found is None else Output(**found)

    if values.pop("kind") == "number":
        return Number(values["source"], output(values["value"]), output(values["missing"]))
    outputs = tuple(Output(**found) for found in values.pop("outputs"))
    return Category(**values, outputs=outputs)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
