"""Tables that cannot be joined or read: one line that says what, where, and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from python_api.data.loaders import read_rows, write_rows
from python_api.data.vertical import load_vertical
from python_api.errors import InputError

from .vertical_kit import config, write_tables

Row = dict[str, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tables(tmp_path)
    return tmp_path


def change(folder: Path, name: str, make: Callable[[int, Row], Row | None]) -> None:
    """make: the new row, or None to leave it out."""
    rows = list(read_rows(folder / f"{name}.csv"))
    made = [new for index, row in enumerate(rows) if (new := make(index, dict(row))) is not None]
    write_rows(made, folder / f"{name}.csv")


def refused(folder: Path, *words: str, **keys: Any) -> None:
    with pytest.raises(InputError) as caught:
        load_vertical(config(folder, **keys))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def noted(folder: Path, *words: str, **keys: Any) -> None:
    notes = load_vertical(config(folder, **keys)).notes
    assert any(all(word in note for word in words) for note in notes), notes


def test_a_party_without_the_id_column(folder: Path) -> None:
    refused(folder, "party.shop.id", "no column 'ident'", "id, u, v, kind", shop={"id": "ident"})


def test_a_label_column_that_is_not_there(folder: Path) -> None:
    refused(folder, "data.label: ", "no column 'z'", "id, x, job, y", data={"label": "z"})
    refused(folder, "party.shop.label: ", "no column 'z'", shop={"label": "z"})


def test_ids_that_share_nothing(folder: Path) -> None:
    change(folder, "shop", lambda i, row: row | {"id": f"k{i}"})
    refused(folder, "party.shop.id", "share no id", "'k0'", "the same ids")


def test_ids_written_otherwise(folder: Path) -> None:
    for name in ("bank", "shop"):
        change(folder, name, lambda i, row: row | {"id": str(int(row["id"][1:]))})
    change(folder, "shop", lambda i, row: row | {"id": row["id"] + ".0"})
    refused(folder, "party.shop.id", "60 ids are written otherwise", ".0'", "shop.csv:2")
    change(folder, "shop", lambda i, row: row | {"id": row["id"].removesuffix(".0").zfill(3)})
    refused(folder, "written otherwise", "expected the same text")


def test_a_few_ids_written_otherwise_are_said_and_not_matched(folder: Path) -> None:
    change(folder, "shop", lambda i, row: row | ({"id": row["id"].upper()} if i < 3 else {}))
    noted(folder, "shop: 3 ids are written otherwise", "shop.csv:2")
    assert load_vertical(config(folder)).counts["common"] == 57
    change(folder, "bank", lambda i, row: row | {"id": {0: "7", 1: "007"}.get(i, row["id"])})
    noted(folder, "bank: ids '7' and '007' look like one", "bank.csv:2", "bank.csv:3")


def test_an_id_that_stands_twice_or_not_at_all(folder: Path) -> None:
    first = read_rows(folder / "shop.csv")[0]["id"]
    change(folder, "shop", lambda i, row: row | ({"id": first} if i == 4 else {}))
    refused(folder, "shop.csv:6", f"id {first!r} stands at", "shop.csv:2 too")
    change(folder, "shop", lambda i, row: row | {"id": " " if i == 4 else f"k{i}"})
    refused(folder, "shop.csv:6", "'id' is empty")


def test_a_label_outside_the_label_space_and_a_class_that_nobody_has(folder: Path) -> None:
    labels = {"labels": ["a", "b"]}
    refused(folder, "bank.csv:", "label 'c'", "data.labels: a, b", data=labels)
    labels = {"labels": ["a", "b", "c", "d"]}
    refused(folder, "nobody has a row of class 'd'", "a, b, c", data=labels)


def test_a_class_that_the_active_party_lacks(folder: Path) -> None:
    change(folder, "bank", lambda i, row: None if row["y"] == "c" else row)
    own = {"features": [], "label": "kind"}
    refused(folder, "only shop has training rows labelled 'c'", "data.unseen", shop=own)
    data = load_vertical(config(folder, shop=own, data={"unseen": ["c"]}))
    assert data.labels == ("a", "b", "c") and data.unseen == (2,)


def test_one_class_or_none(folder: Path) -> None:
    change(folder, "bank", lambda i, row: row | {"y": "a"})
    refused(folder, "data.label: one class, 'a'", "two classes")
    change(folder, "bank", lambda i, row: row | {"y": ""})
    refused(folder, "data.label: no label at all")


def test_unseen_classes_need_somebody_who_shows_them(folder: Path) -> None:
    refused(folder, "data.unseen: no party but bank", "'b'", "label =", data={"unseen": ["b"]})
    refused(folder, "data.unseen: no class 'z'", data={"unseen": ["z"]})
    refused(folder, "leave the active party two or more", data={"unseen": ["a", "b"]})


def test_columns_that_are_not_there_or_hold_the_label(folder: Path) -> None:
    refused(folder, "party.shop.features", "no column 'w'", shop={"features": ["u", "w"]})
    refused(folder, "party.bank.categorical", "no feature 'z'", bank={"categorical": ["z"]})
    change(folder, "shop", lambda i, row: row | {"y": "a"})
    refused(folder, "party.shop.features", "'y' is the label column", shop={"features": ["y"]})


def test_text_where_numbers_were_expected(folder: Path) -> None:
    change(folder, "shop", lambda i, row: row | ({"u": "twelve"} if i == 3 else {}))
    refused(folder, "shop.csv:5", "u = 'twelve' among numbers")


def test_missing_and_constant_values_are_said(folder: Path) -> None:
    blanks = {0: "NaN", 1: "", 2: "NA", 3: "null"}
    change(folder, "shop", lambda i, row: row | {"v": "1", "u": blanks.get(i, row["u"])})
    noted(folder, "shop: missing values are imputed: u (4)")
    noted(folder, "shop: v is constant in its training rows and left out")
    change(folder, "shop", lambda i, row: row | {"u": "1"})
    refused(folder, "party.shop.table: every column", "constant")


def test_a_column_without_a_name_is_left_out(folder: Path) -> None:
    change(folder, "bank", lambda i, row: {"": str(i)} | row)
    noted(folder, "bank: a column without a name is left out")
    assert load_vertical(config(folder)).parties["bank"].columns.sources == ("x", "job")


def test_small_tables(folder: Path) -> None:
    change(folder, "shop", lambda i, row: row if i == 0 else None)
    refused(folder, "party.shop.table", "one row", "two or more")
    write_rows([{"id": "1", "y": "a"}, {"id": "2", "y": "b"}], folder / "bank.csv")
    refused(folder, "party.bank.table", "no column beside id and label")
    (folder / "bank.csv").write_text("")
    refused(folder, "bank.csv: is empty")
    (folder / "bank.csv").unlink()
    refused(folder, "bank.csv: no such file")


def test_two_rows_are_a_run(folder: Path) -> None:
    write_rows([{"id": i, "x": x, "y": y} for i, x, y in ("1pa", "2qb")], folder / "bank.csv")
    write_rows([{"id": i, "u": u, "v": 1} for i, u in ("13", "24")], folder / "shop.csv")
    data = load_vertical(config(folder))
    assert data.counts["aligned"] == 2 and data.counts["test"] == 0


def test_no_id_that_all_parties_hold(folder: Path) -> None:
    bank = [row["id"] for row in read_rows(folder / "bank.csv")]
    shop = {row["id"] for row in read_rows(folder / "shop.csv")}
    alone = [id for id in bank if id not in shop]
    write_rows([{"id": id, "w": i} for i, id in enumerate(alone)], folder / "post.csv")
    post = {"name": "post", "table": f"{folder}/post.csv", "id": "id"}
    refused(folder, "no id is held by all of bank, shop, post", more=[post])


def test_labels_that_parties_do_not_agree_on_are_said(folder: Path) -> None:
    change(folder, "shop", lambda i, row: row | ({"kind": "a"} if i < 9 else {}))
    noted(folder, "shop: ", "of its labels differ", shop={"label": "kind"})


def test_an_image_has_as_many_pixels_as_columns(folder: Path) -> None:
    cnn = {"model": {"kind": "cnn", "shape": [1, 3, 3]}}
    refused(folder, "party.shop.model.shape", "9 pixels", "2 features", shop=cnn)
    cnn = {"model": {"kind": "cnn", "shape": [1, 1, 2]}}
    refused(folder, "party.bank.model.kind", "'job'", "texts", bank=cnn)
