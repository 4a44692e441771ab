"""Means and paired differences by hand, from rows that are made up here."""

from __future__ import annotations

import pytest

from python_api.sweep import Grid, Row, collate, markdown
from python_api.sweep.figure import write_figure


def line(row, seed, party, value, *, seconds=1.0, passes=None, before=None, **metrics):
    return {
        "row": row,
        "seed": seed,
        "party": party,
        "status": "finished",
        "metrics": {"test": {"accuracy": value, **metrics}},
        "before": {} if before is None else {"test": {"accuracy": before}},
        "passes": passes,
        "seconds": seconds,
        "bytes": 1_500_000,
    }


def lines(values):
    """{(row, seed): {party: value}}"""
    return {
        (row, seed): [line(row, seed, party, value) for party, value in own.items()]
        for (row, seed), own in values.items()
    }


GRID = Grid(seeds=(0, 1), rows=(Row("one"), Row("two"), Row("three")))


def test_differences_are_paired_by_seed_and_party():
    made = lines(
        {
            ("one", 0): {"a": 0.5, "b": 0.9},
            ("one", 1): {"a": 0.6, "b": 0.7},
            ("two", 0): {"a": 0.6, "b": 1.0},
            ("two", 1): {"a": 0.75},  # b has no value: three pairs
        }
    )
    one, two, three = collate(made, GRID)
    assert one.difference is None and one.means == pytest.approx({"a": 0.55, "b": 0.8})
    assert one.mean == pytest.approx(0.675) and one.seeds == 2
    assert two.difference.pairs == 3
    assert two.difference.mean == pytest.approx((0.1 + 0.1 + 0.15) / 3)
    assert two.difference.seen
    assert (two.difference.low, two.difference.high) == pytest.approx((0.1, 0.15))
    assert two.by_party["b"].pairs == 1 and not two.by_party["b"].seen
    assert three.mean is None and three.seeds == 0 and three.difference is None


def test_the_grid_chooses_party_and_metric():
    made = {("one", 0): [line("one", 0, "a", 0.5, auc=0.7), line("one", 0, "b", 0.9)]}
    (row,) = collate(made, Grid((0,), (Row("one"),), metric="auc"))
    assert row.means == {"a": 0.7}
    (row,) = collate(made, Grid((0,), (Row("one"),), party=("b",)), also=("auc", "accuracy"))
    assert row.means == {"b": 0.9} and row.also == {"accuracy": 0.9}


def test_a_value_that_is_none_counts_as_none():
    made = lines({("one", 0): {"a": None}, ("two", 0): {"a": 0.5}})
    one, two, _ = collate(made, GRID)
    assert one.mean is None and two.mean == 0.5 and two.difference is None


def test_the_page():
    made = {
        ("one", 0): [line("one", 0, "a", 0.5, passes=60, before=0.25, seconds=9.0)],
        ("one", 1): [line("one", 1, "a", 0.5, passes=60, before=0.35)],
        ("two", 0): [line("two", 0, "a", 0.6, passes=50)],
        ("two", 1): [line("two", 1, "a", 0.8, passes=50)],
        ("three", 0): [line("three", 0, "a", 0.4)],
        ("three", 1): [{"row": "three", "seed": 1, "status": "failed", "reason": "disk"}],
    }
    text = markdown(made, GRID, also=("loss",))
    assert text.splitlines()[2:] == [
        "| row | a | loss | seeds | minus one | pairs | seconds | MB | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| before training | 0.300 |  |  |  |  |  |  |  |",
        "| one | 0.500 | - | 2 |  |  | 5.0 | 1.50 | 60 |",
        "| two | 0.700 | - | 2 | +0.200 [+0.100, +0.300] | 2 | 1.0 | 1.50 | 50 |",
        "| three | 0.400 | - | 1 | -0.100 (one pair) | 1 | 1.0 | 1.50 | - |",
        "",
        "Not in the table (1 of 6 runs):",
        "",
        "- three, seed 1: disk",
    ]


def test_an_interval_that_holds_zero_is_no_difference():
    made = lines(
        {
            ("one", 0): {"a": 0.5, "b": 0.5},
            ("two", 0): {"a": 0.6, "b": 0.4},
            ("three", 0): {"a": 0.7, "b": 0.6},
        }
    )
    text = markdown(made, Grid((0,), GRID.rows))
    (two,) = [row for row in text.splitlines() if row.startswith("| two | 0.600")]
    assert "+0.000 [-0.100, +0.100] no difference seen" in two
    assert "| three | +0.200 (one pair) | +0.100 (one pair) |" in text  # by party
    assert "no difference" not in text.split("| three")[1]


def test_a_bar_in_a_name_breaks_no_table():
    (_, _, _, _, row) = markdown(lines({("a|b", 0): {"x": 1.0}}), Grid((0,), (Row("a|b"),))).split(
        "\n"
    )[:5]
    assert row.startswith("| a\\|b | 1.000 |")


def test_the_figure(tmp_path):
    path = tmp_path / "figure.png"
    made = lines(
        {
            (row, seed): {"$a_b$": 0.5 + at * seed / 10}
            for seed in (0, 1)
            for at, row in enumerate(("one", "two", "three"))
        }
    )
    assert write_figure(path, collate(made, GRID), GRID)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and list(tmp_path.iterdir()) == [path]
    assert not write_figure(path, collate({}, GRID), GRID) and not path.exists()
