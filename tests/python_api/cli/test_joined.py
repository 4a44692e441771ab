"""`predict`, `evaluate` and `export` of a run whose parties hold other columns of the same rows."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from python_api.algorithms.vertical.load import load_vertical_party
from python_api.cli import main
from python_api.errors import InputError
from python_api.run import load, run

CONFIG = {
    "algorithm": "proto_evfl",
    "rounds": 2,
    "data": {"label": "y"},
    "party": [
        {"name": "guest", "active": True, "table": "guest.csv", "id": "id"},
        {"name": "host", "table": "host.csv", "id": "key"},
    ],
}


def write(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `guest.csv`, `host.csv` and a run on them in `done`."""
    folder = tmp_path_factory.mktemp("joined")
    draw = random.Random(0)
    kinds = [draw.random() < 0.5 for _ in range(80)]
    numbers = [f"{draw.gauss(kind, 0.4):.3f},{draw.gauss(0, 1):.3f}" for kind in kinds]
    write(
        folder / "guest.csv",
        "id,a,b,y",
        [
            f"p{i},{n},{'yes' if k else 'no'}"
            for i, (n, k) in enumerate(zip(numbers, kinds, strict=True))
        ],
    )
    write(
        folder / "host.csv",
        "key,c,city",
        [f"p{i},{draw.gauss(-k, 0.4):.3f},{'Oslo' if k else 'Rome'}" for i, k in enumerate(kinds)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(CONFIG, out=folder / "done", report=False)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with three new rows of each party."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new_guest.csv", "id,a,b", ["n1,1.0,0", "n2,0.0,0", "n3,NA,0"])
    write(tmp_path / "new_host.csv", "key,c,city", ["n3,-1,Oslo", "n1,-1,Bergen"])
    return tmp_path


def predicted(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[dict[str, str]]:
    assert main(["predict", *arguments]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_rows_in_rows_out(trained: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = str(trained / "done")
    rows = predicted(capsys, [done, "guest", "new_guest.csv", "--with", "host=new_host.csv"])
    added = ["prediction", "p_no", "p_yes", "present", "gate_guest", "gate_host"]
    assert list(rows[0]) == ["id", "a", "b", *added]
    assert [row["id"] for row in rows] == ["n1", "n2", "n3"]
    assert [row["present"] for row in rows] == ["guest host", "guest", "guest host"]
    assert float(rows[1]["gate_host"]) == 0 and float(rows[1]["gate_guest"]) == 1
    for row in rows:
        assert float(row["p_no"]) + float(row["p_yes"]) == pytest.approx(1)
        assert float(row["gate_guest"]) + float(row["gate_host"]) == pytest.approx(1)
        assert row["prediction"] == max(("no", "yes"), key=lambda name: float(row[f"p_{name}"]))


def test_one_party_alone_is_enough(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for party in ("guest", "host"):
        file = f"new_{party}.csv"
        rows = predicted(capsys, [str(trained / "done"), party, file])
        assert {row["present"] for row in rows} == {party}
        assert main(["predict", str(trained / "done"), party, file, "--out", "o.parquet"]) == 0
        capsys.readouterr()
    assert main(["predict", str(trained / "done"), "host", "o.parquet", "--out", "p.jsonl"]) == 0
    assert len((place / "p.jsonl").read_text().splitlines()) == 2


def test_the_same_in_python(trained: Path, place: Path) -> None:
    done = load(trained / "done")
    guest = done.party("guest")
    rows = [{"id": "n1", "a": "1.0", "b": "0"}]
    (alone,) = guest.predict(rows)
    (both,) = guest.predict(rows, others={"host": [{"key": "n1", "c": "-1", "city": "Oslo"}]})
    assert (alone["present"], both["present"]) == ("guest", "guest host")
    assert both == guest.predict(rows, others={"host": "new_host.csv"})[0] | {
        key: both[key] for key in ("p_no", "p_yes", "prediction", "gate_guest", "gate_host")
    }
    with pytest.raises(InputError, match="shop"):
        guest.predict(rows, others={"shop": rows})
    assert "gate_host" not in rows[0]  # what was given stays as it was


def test_evaluate_measures_what_training_measured(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, guest, host = (str(trained / name) for name in ("done", "guest.csv", "host.csv"))
    assert main(["evaluate", done, "guest", guest, "--with", f"host={host}"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("balanced_accuracy", "auc", "recall_yes", "loss"))
    assert main(["evaluate", done, "host", host, "--with", f"guest={guest}"]) == 0
    assert capsys.readouterr().out == text  # the labels stand in the other file
    assert main(["evaluate", done, "host", host]) == 2
    assert "no label" in capsys.readouterr().err


def test_evaluate_reads_labels_as_training_does_and_names_unseen_classes(trained: Path) -> None:
    with (trained / "guest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = load_vertical_party(trained / "done", "guest")
    plain = model.evaluate_rows(rows)
    assert model.evaluate_rows([row | {"y": f" {row['y']} "} for row in rows]) == plain
    data = model.config.data.model_copy(update={"unseen": ("yes",)})
    model.config = model.config.model_copy(update={"data": data})
    found = model.evaluate_rows(rows)
    assert found["unseen_accuracy"] == plain["recall_yes"]
    assert found["seen_accuracy"] == plain["recall_no"] and "harmonic_mean" in found


def test_files_that_share_no_id_are_predicted_and_told(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place / "far.csv", "key,c,city", ["x1,0,Oslo"])
    done = str(trained / "done")
    assert main(["predict", done, "guest", "new_guest.csv", "--with", "host=far.csv"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "warning: far.csv: none of its ids ('x1', ...) is in new_guest.csv ('n1', ...); host "
        "counts as absent\n"
    )
    assert len(said.out.splitlines()) == 4


def test_what_the_files_get_wrong(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place / "no_id.csv", "name,c,city", ["n1,0,Oslo"])
    write(place / "less.csv", "key,c", ["n1,0"])
    write(place / "twice.csv", "key,c,city", ["n1,0,Oslo", "n2,0,Oslo", "n1,1,Rome"])
    write(place / "text.csv", "key,c,city", ["n1,zero,Oslo", "p1,1,Oslo"])
    before = sorted(place.iterdir())
    for with_, words in (
        (["host=no_id.csv"], "no_id.csv: no id column 'key' of host; found name, c, city"),
        (["host=less.csv"], "less.csv: no column 'city' of host; found key, c"),
        (["host=twice.csv"], "twice.csv:4:"),
        (["host=text.csv"], "text.csv:2: c = 'zero'; expected a finite number"),
        (["host=none.csv"], "none.csv: no such file"),
        (["guest=new_guest.csv"], "guest is guest itself; expected some of host"),
        (["shop=new_host.csv"], "shop has no model in this run; expected some of host"),
        (["new_host.csv"], "--with new_host.csv: expected PARTY=FILE"),
        (["host=a.csv", "host=b.csv"], "host has a file already (a.csv)"),
    ):
        options = [part for text in with_ for part in ("--with", text)]
        for given in (
            ["predict", str(trained / "done"), "guest", "new_guest.csv", *options],
            ["evaluate", str(trained / "done"), "guest", str(trained / "guest.csv"), *options],
        ):
            assert main(given) == 2, given
            said = capsys.readouterr().err
            assert words in said and said.count("\n") == 1, (given, said)
    assert sorted(place.iterdir()) == before
    arguments = ["predict", str(trained / "done"), "guest", "rows.parquet"]
    assert main(arguments) == 2 and "--out FILE" in capsys.readouterr().err


def test_a_run_of_one_party_takes_no_other_file(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        alone = {"algorithm": "vfl_local", "rounds": 1}
        run(CONFIG | alone, out=trained / "alone", report=False, overwrite=True)
    done = str(trained / "alone")
    capsys.readouterr()
    assert main(["predict", done, "guest", "new_guest.csv", "--with", "host=new_host.csv"]) == 2
    said = capsys.readouterr().err
    assert said == "--with host=...: host has no model in this run; expected guest's file alone\n"
    assert {row["present"] for row in predicted(capsys, [done, "guest", "new_guest.csv"])} == {
        "guest"
    }


def test_export_points_to_what_there_is(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained / "done"), "host"]) == 2
    said = capsys.readouterr().err
    assert "models/host/native" in said and said.count("\n") == 1
    assert not (trained / "done" / "export").exists()
    assert (trained / "done" / "models" / "host" / "native" / "encoder.safetensors").is_file()
