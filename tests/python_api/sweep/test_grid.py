"""GRID.toml: what it says, and one line for everything that can be wrong with it."""

from __future__ import annotations

import pytest

from python_api import InputError
from python_api.sweep import load_grid

ROW = '[[row]]\nname = "a"\n'


def test_a_whole_grid(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text(
        'seed = [3, 1]\nmetric = "auc"\nsplit = "validation"\nparty = "left"\n'
        '[[row]]\nname = "first"\n[[row]]\nname = "lr 1e-2"\n'
        'set = { algorithm = "local", "party.*.lr" = 1e-2, h2tune.share = false }\n'
    )
    grid = load_grid(path)
    assert grid.seeds == (3, 1) and (grid.metric, grid.split) == ("auc", "validation")
    assert grid.party == ("left",)
    assert [row.name for row in grid.rows] == ["first", "lr 1e-2"] and grid.rows[0].set == {}
    assert grid.rows[1].set == {
        "algorithm": "local",
        "party.*.lr": 1e-2,
        "h2tune": {"share": False},
    }
    assert grid.rows[1].folder == "lr-1e-2"


def test_what_is_not_said():
    grid = load_grid({"seed": [0], "row": [{"name": "a"}], "party": ["x", "y"]})
    assert (grid.metric, grid.split, grid.party) == ("accuracy", "test", ("x", "y"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ROW, "no seed; expected seed = [0, 1, 2]"),
        ("seed = 3\n" + ROW, "seed: 3; expected a list of whole numbers"),
        ("seed = []\n" + ROW, "seed: []; expected a list of whole numbers"),
        ("seed = [0, 1.5]\n" + ROW, "seed: [0, 1.5]; expected a list of whole numbers"),
        ("seed = [true]\n" + ROW, "seed: [True]; expected a list of whole numbers"),
        ("seed = [0, 1, 0]\n" + ROW, "seed: 0 stands twice; expected each seed once"),
        ("seed = [0]\n", "row: expected one [[row]] table or more"),
        ("seed = [0]\nrow = []\n", "row: expected one [[row]] table or more"),
        ("seed = [0]\nrow = [1]\n", "row 1: 1; expected a [[row]] table"),
        ("seed = [0]\nseeds = [1]\n" + ROW, "seeds: unknown key; nearest known: seed"),
        ("seed = [0]\nxyz = 1\n" + ROW, "xyz: unknown key; expected one of seed, metric, split"),
        ("seed = [0]\n[[row]]\nset = {}\n", "row 1: no name; expected name = ..."),
        ("seed = [0]\n[[row]]\nname = 3\n", "row 1: name: 3; expected a text"),
        ("seed = [0]\n" + ROW + "sets = {}\n", "row 1: sets: unknown key; nearest known: set"),
        (
            "seed = [0]\n" + ROW + 'metric = "auc"\n',
            "row 1: metric: `metric` belongs at the top of the file, before the first [[row]]",
        ),
        ("seed = [0]\n" + ROW + "lr = 1\n", "row 1: lr: unknown key; expected name and set"),
        ("seed = [0]\n" + ROW + "set = 3\n", "row 1: set: 3; expected a table of the config's"),
        ("seed = [0]\n" + ROW + "set = { seed = 1 }\n", "row a: set.seed: expected seed = [...]"),
        ("seed = [0]\n" + ROW + ROW, "row 2: name 'a' is taken by row 1; expected another"),
        (
            "seed = [0]\n" + ROW + '[[row]]\nname = "A!"\n',
            "row 2: name 'A!' gives the folder of row 1, 'a'; expected one that differs",
        ),
        ("seed = [0]\nmetric = 1\n" + ROW, "metric: 1; expected a text"),
        ("seed = [0]\nparty = 1\n" + ROW, "party: 1; expected a party's name, or a list"),
        ("seed = [0\n", "not valid TOML:"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, line):
    path = tmp_path / "g.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_grid(path)
    assert str(error.value).startswith(f"{path}: {line}") and "\n" not in str(error.value)


def test_a_grid_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: no such file; expected a TOML file"):
        load_grid(tmp_path / "none.toml")
