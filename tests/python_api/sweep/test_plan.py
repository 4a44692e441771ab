"""Which runs a grid stands for, and what makes a run another one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from python_api import InputError
from python_api.sweep import load_grid, make_plan

EXAMPLES = Path(__file__).parents[3] / "examples"


def hashes(folder, grid="grid.toml", **options):
    plan = make_plan("c.toml", load_grid(grid), folder / "out", **options)
    return {(job.row, job.seed): job.hash for job in plan}


def test_seed_by_seed(folder):
    plan = make_plan("c.toml", load_grid("grid.toml"), folder / "out")
    assert [(job.row, job.seed) for job in plan] == [
        ("plain", 0),
        ("fast", 0),
        ("plain", 1),
        ("fast", 1),
    ]
    assert len({job.hash for job in plan}) == 4
    assert plan.jobs[1].folder == folder / "out" / "runs" / "fast-0"
    assert plan.configs["fast"].train.lr == 1e-2


def test_what_makes_a_run_another_one(folder):
    before = hashes(folder)
    assert hashes(folder) == before
    grid = folder / "grid.toml"
    grid.write_text('metric = "loss"\n' + grid.read_text().replace("1e-2", "2e-2"))
    after = hashes(folder)
    assert {key for key in before if before[key] != after[key]} == {("fast", 0), ("fast", 1)}
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text() + "more,a\n")
    data = hashes(folder)
    assert all(data[key] != after[key] for key in after)
    config = folder / "c.toml"
    config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
    assert all(value != data[key] for key, value in hashes(folder).items())


def test_a_config_for_each_seed(folder):
    def source(seed):
        return tomllib.loads((folder / "c.toml").read_text()) | {"rounds": seed + 1}

    plan = make_plan(source, load_grid("grid.toml"), "out")
    assert [job.source["rounds"] for job in plan] == [1, 1, 2, 2]


def test_overrides_lie_below_the_rows(folder):
    plan = make_plan("c.toml", load_grid("grid.toml"), "out", overrides={"train.lr": 0.5})
    assert [config.train.lr for config in plan.configs.values()] == [0.5, 1e-2]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ('"train.rnak" = 1', r"row fast: c.toml: (--set )?train.rnak: unknown key"),
        ('algorithm = "lokal"', "row fast: c.toml: algorithm: 'lokal' is not known; nearest"),
        ('"party.z.lr" = 1e-2', "row fast: --set party.z: c.toml has no such party"),
    ],
)
def test_a_row_that_the_config_refuses(folder, settings, line):
    grid = folder / "grid.toml"
    grid.write_text(grid.read_text().replace('"train.lr" = 1e-2', settings))
    with pytest.raises(InputError, match=line):
        hashes(folder)


def test_a_config_that_is_not_there_is_no_rows_fault(folder):
    with pytest.raises(InputError, match=r"^none\.toml: no such file"):
        make_plan("none.toml", load_grid("grid.toml"), "out")


def test_a_party_that_is_not_there(folder):
    with pytest.raises(InputError, match="row plain: party: the config has no 'z'; expected some"):
        make_plan("c.toml", load_grid({"seed": [0], "party": "z", "row": [{"name": "plain"}]}), ".")


def test_the_example_fits_its_config(tmp_path):
    grid = load_grid(EXAMPLES / "h2tune_controls.toml")
    plan = make_plan(EXAMPLES / "h2tune_same_base.toml", grid, tmp_path / "out")
    assert len(plan.jobs) == 20 and not list(tmp_path.iterdir())
    assert [config.h2tune.share for config in plan.configs.values()][:3] == [
        True,
        False,
        "shuffled",
    ]
    assert plan.configs["local"].algorithm == "local" and plan.configs["local"].train.lr == 2e-3
