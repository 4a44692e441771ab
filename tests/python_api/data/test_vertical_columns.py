"""Columns: what texts become, and the line for those that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from python_api.data.loaders import Rows
from python_api.data.vertical import Columns
from python_api.data.vertical.columns import CATEGORIES, survey
from python_api.errors import InputError


def rows(**columns: list[str]) -> Rows:
    names = list(columns)
    made = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Rows(Path("t.csv"), made, range(2, len(made) + 2), names)


def fitted(table: Rows, **options: bool) -> Columns:
    return Columns.fit(table, survey(table, table.names, ())[0], **options)


def test_numbers_are_standardised_and_missing_ones_are_the_mean() -> None:
    table = rows(x=["1", "2.5", " NA ", "-4e0", "", "nan", "null", "0"])
    columns = fitted(table)
    made = columns.encode(table)
    given = torch.tensor([1, 2.5, -4, 0])
    seen = [0, 1, 3, 7]
    assert columns.names == ("x", "x missing")
    wanted = (given - given.mean()) / given.std(correction=0)
    torch.testing.assert_close(made[seen, 0], wanted)
    assert made[[2, 4, 5, 6], 0].tolist() == [0.0] * 4
    assert made[:, 1].unique().numel() == 2 and abs(made[:, 1].mean()) < 1e-6
    assert survey(table, ["x"], ()) == ({"x": "number"}, {"x": 4})


def test_few_missing_values_have_no_column_of_their_own() -> None:
    table = rows(x=[str(i) for i in range(200)] + [""])
    assert fitted(table).names == ("x",)


def test_texts_are_one_hot_and_rare_or_unknown_ones_share_a_column() -> None:
    table = rows(city=["Oslo"] * 60 + ["Rome"] * 38 + ["Bari", "Como"])
    columns = fitted(table)
    assert columns.names == ("city=Oslo", "city=Rome", "city other")
    made = columns.encode(rows(city=["Bari", "Como", "Pisa", "NA", "Oslo"]))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert made[3, 2] < 0 < made[0, 2] and made[4, 0] > 0 > made[3, 0]
    assert torch.isfinite(made).all()


def test_a_missing_text_is_a_category() -> None:
    table = rows(city=["Oslo", "Rome", "", "NA"])
    assert fitted(table).names == ("city=Oslo", "city=Rome", "city missing")
    assert survey(table, ["city"], ())[1] == {"city": 2}


def test_constant_columns_are_left_out_and_said_but_not_the_pixels_of_an_image() -> None:
    table = rows(a=["1", "1"], b=["x", "x"], c=["1", "2"], d=["", ""])
    assert fitted(table).names == ("c",)
    assert fitted(table).notes[0] == "a, b, d are constant in its training rows and left out"
    pixels = fitted(rows(a=["1", "1"], c=["1", "2"]), keep_constant=True)
    assert pixels.names == ("a", "c")
    assert pixels.encode(rows(a=["1"], c=["2"])).tolist() == [[0.0, 1.0]]


def test_json_brings_the_same_columns_back() -> None:
    table = rows(x=["1", "2", "", "4"], city=["Oslo", "Rome", "NA", "Oslo"], k=["1", "1", "1", "1"])
    columns = fitted(table)
    again = Columns.from_dict(json.loads(json.dumps(columns.to_dict())))
    assert again.parts == columns.parts and again.sources == ("x", "city")
    assert torch.equal(again.encode(table), columns.encode(table))
    assert columns.encode([]).shape == (0, len(columns.names))


def test_values_far_out_are_cut() -> None:
    columns = fitted(rows(x=["1", "2", "3"]))
    assert columns.encode(rows(x=["1e30", "-1e30"])).flatten().tolist() == [10.0, -10.0]


def test_values_whose_squares_are_no_floats_are_standardised_too() -> None:
    columns = fitted(rows(x=["1.7e308", "-1.7e308"] * 2))
    assert columns.encode(rows(x=["1.7e308", "-1.7e308", "0"])).flatten().tolist() == [1, -1, 0]


def test_codes_may_be_declared_categories() -> None:
    table = rows(zip=["10", "20", "10", "20"])
    assert survey(table, ["zip"], ["zip"])[0] == {"zip": "category"}
    assert survey(table, ["zip"], [])[0] == {"zip": "number"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["1"] * 9 + ["many"], ["t.csv:11", "x = 'many' among numbers", 'categorical = ["x"]']),
        (["1", "inf"], ["t.csv:3", "x = 'inf'", "finite"]),
        (["1", "1e999"], ["t.csv:3", "finite"]),
        (["1"] * 9 + ["1_0"], ["t.csv:11", "'1_0' among numbers"]),
        ([f"v{i}" for i in range(CATEGORIES + 1)], ["'x' has 33 different texts", "at most 32"]),
    ],
)
def test_what_is_no_column_is_one_line(values: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        survey(rows(x=values), ["x"], [])
    for word in words:
        assert word in str(caught.value)


def test_other_rows_are_held_to_what_was_learnt() -> None:
    columns = fitted(rows(x=["1", "2"], city=["Oslo", "Rome"]))
    with pytest.raises(InputError, match=r"t.csv:2: x = 'far'; expected a finite number"):
        columns.encode(rows(x=["far"], city=["Oslo"]))
    with pytest.raises(InputError, match=r"t.csv: no column 'city'; found x"):
        columns.encode(rows(x=["1"]))
    # an empty parquet or JSON value has no key in its row
    sparse = Rows(Path("t.jsonl"), [{"x": "1"}], [1], ["x", "city"])
    assert columns.encode(sparse).shape == (1, 3)
