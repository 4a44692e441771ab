"""Tables from files: .jsonl, .csv, .tsv, .parquet. Values are texts, errors have a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from python_api.errors import InputError

__all__ = ["SUFFIXES", "Rows", "read_rows", "write_rows"]

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


class Rows(list[dict[str, str]]):
    """Rows with the file and the line each began at, for messages.

    path: the file. lines: a line (or, in .parquet, row) number per row, from 1. names: the columns,
    also those that hold no value in any row.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[dict[str, str]],
        lines: Sequence[int],
        names: Iterable[str] | None = None,
    ) -> None:
        super().__init__(rows)
        self.path = path
        self.lines = tuple(lines)
        found = names if names is not None else (key for row in rows for key in row)
        self.names = tuple(dict.fromkeys(found))

    def where(self, index: int) -> str:
        """`file:line` of row `index`."""
        return f"{self.path}:{self.lines[index]}"


def read_rows(path: str | Path, *, columns: Sequence[str] | None = None) -> Rows:
    """All rows of a table, as texts.

    columns: the names of a .csv or .tsv file that has no header. Fields are quoted as in RFC 4180
    (.csv; a quoted field may hold line breaks), plain between tabs (.tsv). Text is UTF-8, with or
    without a byte-order mark, with either line end. In .jsonl a missing key stays missing and a
    number becomes its text.

    Raises:
        InputError: no such file, an unknown ending, an empty file, or a bad line (named).
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown ending; expected one of {' '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table ({' '.join(SUFFIXES)})")
    if columns is not None and len(set(columns)) != len(columns):
        raise InputError(f"columns: {list(columns)} holds a name twice; expected distinct names")
    if path.suffix == ".parquet":
        rows = _parquet(path, columns)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise InputError(f"{path}:{line}: not UTF-8; expected UTF-8 text") from error
        if not text.strip():
            raise InputError(f"{path}: is empty; expected rows")
        rows = (
            _jsonl(path, text, columns) if path.suffix == ".jsonl" else _table(path, text, columns)
        )
    if not rows:
        raise InputError(f"{path}: has no rows; expected at least one below the header")
    return rows


def _jsonl(path: Path, text: str, columns: Sequence[str] | None) -> Rows:
    if columns is not None:
        raise InputError(f"{path}: columns name the fields of .csv and .tsv; .jsonl has keys")
    rows, lines = [], []
    names: dict[str, None] = {}
    # not splitlines(): JSON strings may hold U+2028 and the like
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: not JSON ({error.msg}); expected an object"
            ) from error
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number}: {type(value).__name__}; expected an object")
        names |= dict.fromkeys(value)
        rows.append({key: _text(v) for key, v in value.items() if v is not None})
        lines.append(number)
    return Rows(path, rows, lines, names)


def _table(path: Path, text: str, columns: Sequence[str] | None) -> Rows:
    tabs = path.suffix == ".tsv"
    lines: list[int] = []
    rows: list[dict[str, str]] = []
    names = None if columns is None else list(columns)
    for line, fields in _records(path, text, tabs=tabs):
        if names is None:
            names = [field.strip() for field in fields]
            double = [name for name in names if names.count(name) > 1]
            if double:
                raise InputError(f"{path}:{line}: two columns are named {double[0]!r}")
            continue
        if len(fields) != len(names):
            raise InputError(
                f"{path}:{line}: {len(fields)} fields; expected {len(names)} ({', '.join(names)})"
            )
        rows.append(dict(zip(names, fields, strict=True)))
        lines.append(line)
    return Rows(path, rows, lines)


def _records(path: Path, text: str, *, tabs: bool) -> list[tuple[int, list[str]]]:
    """(first line, fields) of every record that is not blank."""
    if tabs:
        return [
            (number, line.removesuffix("\r").split("\t"))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip("\r")
        ]
    # a field longer than csv's own limit is a text, not an attack
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found, start = [], 1
    try:
        for fields in reader:
            if fields:
                found.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{start}: bad quoting ({error}); expected fields as in RFC 4180"
        ) from error
    return found


def _parquet(path: Path, columns: Sequence[str] | None) -> Rows:
    if columns is not None:
        raise InputError(f"{path}: columns name the fields of .csv and .tsv; .parquet has names")
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: .parquet needs pyarrow; pip install pyarrow") from None
    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises errors of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a parquet file ({first[:120]})") from error
    rows = [{key: _text(v) for key, v in row.items() if v is not None} for row in values]
    names = dict.fromkeys(key for row in values for key in row)
    return Rows(path, rows, range(1, len(rows) + 1), names)


def _text(value: Any) -> str:
    """Numbers and truth values as JSON writes them, so that a label is the same in every format."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows in the format of the file's ending, with the union of their keys as columns.

    The file appears whole or not at all. A .tsv cannot hold tabs and line breaks: they are written
    as blanks.

    Raises:
        InputError: an unknown ending, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown ending; expected one of {' '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; expected one to write to")
    part = path.with_name(f".{path.name}.part")
    try:
        _write(rows, part, path.suffix)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(rows: Sequence[Mapping[str, Any]], path: Path, suffix: str) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    if suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        pyarrow.parquet.write_table(table, path)
    elif suffix == ".tsv":
        with path.open("w", encoding="utf-8", newline="") as file:
            for values in (names, *([row.get(name, "") for name in names] for row in rows)):
                cells = [" ".join(str(v).replace("\t", " ").splitlines()) for v in values]
                file.write("\t".join(cells) + "\n")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
