"""`run` and `load` on a real algorithm with tiny models: from a config to predictions."""

from __future__ import annotations

import csv
import json

import pytest

import python_api
from python_api import InputError
from python_api.federation import latest_round, load_round

WORDS = ("red", "blue", "cold", "warm", "far", "near", "old", "new")


def party(folder, name, **keys):
    """A party with a table of 24 rows; the label is that of the first word."""
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for n in range(24):
            first = (n * 3) % len(WORDS)
            writer.writerow([f"{WORDS[first]} {WORDS[(n * 5 + 1) % 8]}", f"c{first % 2}"])
    model = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2, "pretrain": "none"}
    task = {"kind": "classification", "train": str(path), "text": "text", "label": "label"}
    return {"name": name, "rank": 2, "model": model, "task": task} | keys


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "algorithm": "h2tune",
        "seed": 3,
        "rounds": 2,
        "device": "cpu",
        "train": {"steps": 2, "batch_size": 4, "max_length": 32},
        "h2tune": {"middle_rank": 4},
        "party": [party(folder, "shop"), party(folder, "news", rank=4)],
    }


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    return python_api.run(source, out=tmp_path_factory.mktemp("runs") / "one", progress=False)


def test_a_run_leaves_a_folder_that_loads(finished):
    run = python_api.load(finished.path)
    assert run.status["status"] == "finished" and run.status["round"] == 2
    assert run.parties == ("news", "shop") and run.config.algorithm == "h2tune"
    assert (run.path / "config.toml").read_text().startswith('algorithm = "h2tune"')
    assert run.report.stat().st_size > 10_000
    last = {row["party"]: row for row in run.metrics if row["metric"] == "accuracy"}
    assert run.headline() == {name: row["value"] for name, row in last.items()}
    assert {row["round"] for row in run.metrics} == {0, 1, 2}
    rows = [row for row in run.traffic if row["op"] == "evaluate"]
    assert rows and all(row["wire_bytes"] > 0 for row in rows)


def test_its_checkpoint_holds_parties_and_server(finished):
    found = latest_round(finished.path / "checkpoints")
    states = load_round(found.path)
    assert found.round == 2 and sorted(states) == ["news", "server", "shop"]
    assert states["server"] and states["shop"]


def test_a_party_of_it_predicts_and_evaluates(finished, tmp_path):
    shop = finished.party("shop")
    rows = [{"text": "red near", "label": "c0"}, {"text": "blue far", "label": "c1"}]
    found = shop.predict(rows)
    for row, given in zip(found, rows, strict=True):
        assert row["text"] == given["text"] and row["prediction"] in ("c0", "c1")
        assert row["p_c0"] + row["p_c1"] == pytest.approx(1)
    right = sum(row["prediction"] == row["label"] for row in found) / 2
    assert shop.evaluate(rows)["accuracy"] == pytest.approx(right)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = shop.predict(file)
    assert [row["prediction"] for row in again] == [row["prediction"] for row in found]
    with pytest.raises(InputError, match="label"):
        shop.evaluate([{"text": "red near"}])


def test_the_kept_config_gives_the_same_run_again(finished, tmp_path):
    again = python_api.run(finished.path / "config.toml", out=tmp_path / "two", progress=False)

    def facts(run):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]
        return rows, run.traffic, latest_round(run.path / "checkpoints").hash

    assert facts(again) == facts(finished)


def test_bad_data_shows_before_anything_is_written(source, tmp_path):
    table = tmp_path / "bad.csv"
    table.write_text("words,label\na,b\n")
    task = {"kind": "classification", "train": str(table), "text": "text", "label": "label"}
    broken = source | {"party": [source["party"][0], source["party"][1] | {"task": task}]}
    with pytest.raises(InputError, match=r"bad\.csv"):
        python_api.run(broken, out=tmp_path / "run", progress=False)
    with pytest.raises(InputError):
        python_api.run(source | {"rounds": -1}, out=tmp_path / "run", progress=False)
    assert [child.name for child in tmp_path.iterdir()] == ["bad.csv"]


def test_an_ignored_table_is_named_once_in_the_log(source, tmp_path):
    given = source | {"algorithm": "local", "rounds": 1}
    run = python_api.run(given, out=tmp_path / "run", progress=False)
    assert (run.path / "log.txt").read_text().count("[h2tune]: middle_rank is ignored") == 1


def test_a_party_of_a_centralised_run_has_the_largest_model(source, tmp_path):
    shop, news = source["party"]
    wide = news["model"] | {"hidden_size": 24, "layers": 3}
    given = source | {"algorithm": "centralised", "rounds": 1}
    given["party"] = [shop, news | {"model": wide, "rank": 4, "modules": ["q", "down"]}]
    run = python_api.run(given, out=tmp_path / "run", progress=False)
    model = run.party("shop").model.model
    assert (model.rank, model.n_layers, model.slots) == (4, 3, ("q", "down"))
    limited = run.party("shop").evaluate(given["party"][0]["task"]["train"])
    assert 0 <= limited["accuracy"] <= 1
    for name in ("shop", "news"):
        assert run.party(name).predict([{"text": "red near"}])[0]["prediction"] in ("c0", "c1")


def test_evaluate_rows_looks_at_all_rows(source, finished):
    file = source["party"][0]["task"]["train"]
    limited = finished.party("shop")
    before = len(limited.model.test)
    every = limited.model.run.eval.model_copy(update={"limit": 1})
    limited.model.run = limited.model.run.model_copy(update={"eval": every})
    found = limited.evaluate(file)
    assert found == finished.party("shop").evaluate(file)
    assert len(limited.model.test) == before
    with pytest.raises(InputError, match="no rows"):
        limited.model.evaluate_rows([])
