"""The evidence program's own parts, on rows that are made up here."""

from __future__ import annotations

import csv
import json
import statistics

import pytest

from examples.evidence import proto_evfl
from examples.evidence.gate_figure import gate_line, gates, write_gate_figure
from examples.evidence.proto_evfl_settings import METHOD, REFERENCE, only, settings
from examples.evidence.setting import Setting, group_table, slim
from examples.evidence.tables_on_disk import credit_folder, credit_tables, noise_table
from python_api import InputError
from python_api.sweep import Row, Sweep

from .conftest import metric

ROWS = (Row("base"), Row("ours"))


def setting(name, column, **changes):
    told = {"group": "digits", "rows": ROWS, "metric": "balanced_accuracy"} | changes
    return Setting(name=name, column=column, source=lambda seed: {}, **told)


def lines(row, seed, value, **more):
    told = {
        "row": row,
        "seed": seed,
        "status": "finished",
        "seconds": 8.0,
        "bytes": 4_000_000,
        "before": {"test": {"balanced_accuracy": 0.1}},
    }
    left = told | {"party": "left", "passes": 70}
    left["metrics"] = {"test": {"balanced_accuracy": value, **more}, "validation": {"x": 1.0}}
    right = told | {"party": "right", "passes": 30, "metrics": {"test": {"local_accuracy": 0.2}}}
    return [left, right]


def sweep_of(made, values):
    """{row: a value per seed}"""
    seeds = range(len(next(iter(values.values()))))
    found = {(row, at): lines(row, at, own[at]) for row, own in values.items() for at in seeds}
    return Sweep(made.name, made.grid(seeds), found)


def test_a_group_pools_pairs_over_settings():
    two, ten = setting("d2", "2 %"), setting("d10", "10 %")
    sweeps = {
        "d2": sweep_of(two, {"base": [0.5, 0.6], "ours": [0.6, 0.7]}),
        "d10": sweep_of(ten, {"base": [0.8, 0.9], "ours": [0.8, 0.8]}),
    }
    text = group_table([two, ten], sweeps).splitlines()
    assert text[0] == "### digits" and "paired over 2 seeds" in text[2]
    names, _, before, base, ours = text[-5:]
    assert names.split(" | ")[1:4] == ["2 %", "10 %", "all settings"]
    assert before.startswith("| before training | 0.100 | 0.100 |")
    assert base.split(" | ")[1:] == ["0.550", "0.850", "0.700", "0.200", "0.100", "100 |"]
    cells = ours.split(" | ")
    assert cells[1] == "0.650 (+0.100 [+0.100, +0.100])"
    assert cells[2] == "0.800 (-0.050 [-0.100, +0.000], no difference seen)"
    assert cells[3].startswith("0.725 (+0.025 [") and cells[3].endswith("no difference seen)")


def test_what_is_missing_is_said():
    one = setting("d2", "2 %", also=("seen",))
    done = sweep_of(one, {"base": [0.5, 0.6], "ours": [0.6, 0.7]})
    del done.lines["ours", 1]
    text = group_table([one], {"d2": done})
    assert "Not all runs are done" in text and "(+0.100, one pair)" in text
    assert "all settings" not in text


def test_a_line_of_the_record():
    kept = slim(lines("base", 0, 0.5, loss=None, recall_0=0.1), setting("d2", "2 %"))
    assert kept["metrics"] == {"test": {"balanced_accuracy": 0.5}} and kept["passes"] == 100
    assert kept["party"] == "left"
    failed = [{"status": "failed", "row": "base", "seed": 0, "reason": "x"}]
    assert slim(failed, setting("d2", "2 %")) is None


@pytest.fixture
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "credit"
    folder.mkdir(parents=True)
    (folder / "guest.csv").write_text(
        "id,y,x0\n" + "".join(f"{n},{n % 2},0.{n}\n" for n in range(40))
    )
    (folder / "host.csv").write_text("id,x0\n" + "".join(f"{n},1.{n}\n" for n in range(5, 45)))
    monkeypatch.setenv("FEDKERNELS_DATA", str(tmp_path / "data"))
    return folder


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_people_are_drawn_for_both_parties(data, tmp_path):
    guest, host = (read(path) for path in credit_tables(data, tmp_path / "x", 3, rows=20))
    assert [row["id"] for row in guest] == [row["id"] for row in host] and len(guest) == 20
    assert [row["y"] for row in guest] == [row["y"] for row in host]
    assert all(5 <= int(row["id"]) < 40 for row in guest)
    again = credit_tables(data, tmp_path / "y", 3, rows=20)
    assert read(again[0]) == guest
    other, _ = credit_tables(data, tmp_path / "x", 4, rows=20)
    assert read(other) != guest


def test_noise_is_the_seeds(tmp_path):
    rows = read(noise_table(tmp_path, 1, ids=range(1, 300), columns=3))
    values = [float(row[f"n{at}"]) for row in rows for at in range(3)]
    assert len(rows) == 299 and abs(statistics.mean(values)) < 0.1
    assert 0.9 < statistics.stdev(values) < 1.1
    assert read(noise_table(tmp_path, 2, ids=range(1, 300), columns=3)) != rows


def test_the_settings(data, tmp_path):
    found, absent = settings(tmp_path / "tables")
    assert absent == [] and len({made.name for made in found}) == len(found)
    assert all(made.rows[0] is REFERENCE and METHOD in made.rows for made in found)
    for made in found:
        config = made.source(3)
        assert sum(party.get("active", False) for party in config["party"]) == 1
        assert len(config["party"]) == made.passive + 1
    unseen = next(made for made in found if made.name == "unseen-10-B")
    assert [unseen.source(seed)["data"]["unseen"] for seed in (3, 13)] == [["3"], ["3"]]
    assert [row.name for row in only(unseen, ["literal"]).rows] == [REFERENCE.name, "literal"]


def test_credit_is_left_out_where_it_is_absent(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDKERNELS_DATA", raising=False)
    assert credit_folder() is None
    found, absent = settings(tmp_path)
    assert len(absent) == 1 and not any("credit" in made.name for made in found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--settings", "digit"],
            "--settings digit: no such setting; expected some of digits2-",
        ),
        (["--rows", "ours"], "--rows ours: no such row; expected some of vfl_masked, adjust,"),
        (["--more", "none.toml"], "--more none.toml: "),
    ],
)
def test_names_that_are_not_there(tmp_path, arguments, line):
    found, _ = settings(tmp_path)
    with pytest.raises(InputError) as error:
        proto_evfl.chosen(found, proto_evfl.parse(arguments))
    assert str(error.value).startswith(line)


def test_what_was_asked_for(tmp_path):
    found, _ = settings(tmp_path)
    more = tmp_path / "more.toml"
    more.write_text('[[row]]\nname = "idea"\nset = { "proto_evfl.tau" = 0.2 }\n')

    def rows(*arguments):
        picked = proto_evfl.chosen(found, proto_evfl.parse(list(arguments)))
        return {made.name: [row.name for row in made.rows] for made in picked}

    assert list(rows("--quick")) == list(proto_evfl.QUICK)
    assert set(map(tuple, rows("--fresh").values())) == {(REFERENCE.name, METHOD.name)}
    assert rows("--settings", "wine-10-A", "--rows", "idea", "--more", str(more)) == {
        "wine-10-A": [REFERENCE.name, "idea"]
    }


def test_the_record_on_disk(tmp_path):
    two = setting("d2", "2 %")
    done = sweep_of(two, {"base": [0.5, 0.6], "ours": [0.6, 0.7]})
    text = proto_evfl.write_results(tmp_path, [two], {"d2": done})
    assert (tmp_path / "tables.md").read_text() == text
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(kept) == 4 and [line["seed"] for line in kept] == [0, 0, 1, 1]


def test_the_gate_over_the_rounds(tmp_path):
    folders = []
    for run in range(2):
        folder = tmp_path / str(run)
        folder.mkdir()
        (folder / "config.toml").touch()
        (folder / "status.json").write_text("{}")
        rows = [
            metric(party, "gate", value, round=at, phase="global")
            for at, noise in ((5, 0.30), (10, (0.20, 0.15)[run]))
            for party, value in (("left", 1 - noise), ("noise", noise))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder)
    rounds, found = gates(folders)
    assert rounds == [5, 10] and found["noise"] == [[0.30, 0.20], [0.30, 0.15]]
    assert gate_line(found, "noise") == (
        "gate of `noise`: 0.300 in the first measured round, 0.175 in the last "
        "(-0.125 [-0.150, -0.100], 2 seeds); equal shares would be 0.500"
    )
    write_gate_figure(tmp_path / "figures" / "gate.png", rounds, found)
    assert (tmp_path / "figures" / "gate.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_of_some_settings_only_have_no_pooled_mean():
    few, more = setting("d2", "2 %"), setting("d10", "10 %", rows=(*ROWS, Row("part")))
    sweeps = {
        "d2": sweep_of(few, {"base": [0.5, 0.6], "ours": [0.6, 0.7]}),
        "d10": sweep_of(more, {"base": [0.8, 0.9], "ours": [0.8, 0.8], "part": [0.7, 0.8]}),
    }
    text = group_table([few, more], sweeps)
    part = text.splitlines()[-1].split(" | ")
    assert part[0] == "| part" and part[1] == "-" and part[3] == "-"
    assert part[2] == "0.750 (-0.100 [-0.100, -0.100])"
    assert "Not all runs are done" not in text
