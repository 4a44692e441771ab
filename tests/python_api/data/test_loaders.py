"""Tables from files: formats, quoting, line ends, and the line of every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from python_api.data.loaders import read_rows, write_rows
from python_api.errors import InputError

ROWS = [{"text": 'a "b", c', "label": "x"}, {"text": "ä\u2028z", "label": "y"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_is_written_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = [*ROWS, {"text": "two\nlines", "label": "x"}]
    write_rows(rows, path)
    assert read_rows(path) == rows
    assert list(tmp_path.iterdir()) == [path]


def test_tsv_is_plain_between_tabs(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'text\tlabel\r\nsaid "no\t1\r\n\r\nyes\t0\r\n')
    rows = read_rows(path)
    assert rows == [{"text": 'said "no', "label": "1"}, {"text": "yes", "label": "0"}]
    assert rows.where(1) == f"{path}:4"


def test_byte_order_mark_crlf_and_quoted_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"one\r\ntwo",x\r\n"say ""hi""",y\r\n')
    rows = read_rows(path)
    assert rows[0] == {"text": "one\r\ntwo", "label": "x"}
    assert rows[1]["text"] == 'say "hi"'
    assert rows.lines == (2, 4)


def test_columns_name_a_table_without_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('"3","title","text"\n')
    assert read_rows(path, columns=["class", "a", "b"]) == [
        {"class": "3", "a": "title", "b": "text"}
    ]


def test_a_number_is_the_text_that_json_writes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": 1, "b": 1.5, "c": None, "d": True}) + "\n")
    assert read_rows(path) == [{"a": "1", "b": "1.5", "d": "true"}]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "\n\n", "is empty"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\na,b\nc\n", "a.csv:3: 1 fields; expected 2"),
        ("a.csv", 'text,label\n"a,b\n', "a.csv:2: bad quoting"),
        ("a.csv", "text,text\na,b\n", "two columns are named 'text'"),
        ("a.tsv", "text\tlabel\na\n", "a.tsv:2: 1 fields"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: list; expected an object"),
        ("a.parquet", "nothing", "not a parquet file"),
        ("a.xls", "x", "unknown ending"),
    ],
)
def test_errors_name_file_and_line(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_rows(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_bad_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"text\nok\n\xff\n")
    with pytest.raises(InputError, match=r"a.csv:3: not UTF-8"):
        read_rows(tmp_path / "a.csv")
