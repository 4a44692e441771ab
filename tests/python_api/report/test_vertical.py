"""The page of a run whose parties hold other columns of the same rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from python_api.report import read_run, write_report
from python_api.report.classes import class_names, leakage, planes, priors, recalls, selections
from python_api.report.reading import RunData
from python_api.report.vertical_figures import vertical_figures

from .page import Page, read
from .vertical_kit import DIGITS, server_state, write_run

report = partial(write_report, figures=False)


def page_of(folder: Path) -> Page:
    return read(report(folder))


def titles(page: Page) -> list[str]:
    return [str(a["id"]) for tag, a in page.tags if re.fullmatch("h[23]", tag) and "id" in a]


def data_of(folder: Path) -> RunData:
    return read_run(folder)


def test_the_verdict_is_balanced_accuracy_and_says_whose(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert "Two parties for 40 rounds with Proto-EVFL, seed 3." in page.text
    said = "Balanced accuracy of all parties together on 359 test ids went from 10.0 % to 82.0 %"
    assert said in page.text
    assert "With one party present and the others absent: left 60.0 %, right 45.0 %." in page.text
    assert "told by vfl_local" in page.text
    assert "Every party got better" not in page.text


def test_every_section_of_a_vertical_run_is_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page = page_of(folder)
    assert titles(page) == [
        *("ran", "result", "course", "recall", "alone", "gate", "prior", "selection", "plane"),
        *("notes", "traffic", "left", "times", "config"),
    ]
    rows = " ".join(page.text.split())
    assert "party role table columns encoder labels rows own rows" in rows
    assert "left active builtin:digits?views=2&view=1" in rows
    assert "right passive builtin:digits?views=2&view=2 32 mlp 64 → 32 none 712 583" in rows
    assert "LoRA" not in rows and "modules" not in rows.split("config.toml, as resolved")[0]
    first = rows.index("metric before last change")
    assert rows[first:].startswith("metric before last change balanced accuracy 10.0 % 82.0 %")


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "bare", state=False))
    assert not {"prior", "selection", "plane", "notes"} & set(titles(page))
    assert "gate" in titles(page)  # the metrics know its mean
    empty = page_of(write_run(tmp_path / "empty", state=False, metrics=False))
    assert titles(empty) == ["ran", "result", "traffic", "left", "times", "config"]
    assert "No balanced accuracy was measured yet" in empty.text
    assert "metrics.jsonl holds no balanced accuracy" in empty.text


def test_what_is_not_protected_is_that_of_this_setting(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run")).text
    for words in (
        "Ids were matched in the clear",
        "Representations of rows left every passive party",
        "Gradients sent back reveal labels",
        "A passive party receives every round its local head",
        "its estimate of how often each class occurs among them.",
        "All parties of this run lived in one process",
        "right 645 91.3 % 13.4 % 0.410 0.380 7",
    ):
        assert words in text
    assert "the matrices A and B" not in text and "Updates of a model" not in text
    assert "secret" not in text  # declared for an op that was never called
    assert "gradient float32 (any, 32)" in text  # what comes back tells of labels: it is listed


def test_switches_change_what_is_said_to_leak(tmp_path: Path) -> None:
    change: dict[str, object] = {
        "privacy": ["epsilon = 8 after 40 rounds by the accountant"],
        "leak/right": {"purity": 0.8, "chance": 0.6, "auc": 0.93},
    }
    folder = write_run(
        tmp_path / "noise",
        classes=("no", "yes"),
        gradients="noise",
        share="relations",
        change=change,
    )
    text = page_of(folder).text
    assert "clipped and covered with Gaussian noise: epsilon = 8.0, delta = 1e-05" in text
    assert "It covers neither representations, nor ids" in text
    assert "epsilon does not cover them" in text
    assert "epsilon = 8 after 40 rounds by the accountant." in text
    assert "also sent" not in text  # no passive party has labels
    config = folder / "config.toml"
    config.write_text(
        config.read_text().replace('name = "right"\n', 'name = "right"\nlabel = "y"\n')
    )
    assert "also sent the cosines between its class prototypes" in page_of(folder).text
    assert "label AUC" in text and "0.930" in text and "prototype to nearest row" not in text
    for name, words in (
        ("centralised", "All columns and labels were pooled in this process"),
        ("vfl_local", "Balanced accuracy of left alone on 359 test ids"),
    ):
        text = page_of(write_run(tmp_path / name, algorithm=name)).text
        assert words in text


def test_a_baseline_shows_no_gate_and_no_prototypes_that_it_has_not(tmp_path: Path) -> None:
    change: dict[str, object] = {
        f"gate/{party}": torch.full((10,), 0.5) for party in ("left", "right")
    }
    folder = write_run(tmp_path / "masked", algorithm="vfl_masked", change=change)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"gate"' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    page = page_of(folder)
    assert "gate" not in titles(page) and "diamonds" not in page.text
    assert "Representations in two dimensions" in page.text
    assert not [a for tag, a in page.tags if "proto" in str(a.get("class"))]


def test_arrays_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    state = server_state(DIGITS)
    run = data_of(write_run(tmp_path / "run"))
    assert class_names(run) == DIGITS
    for party in ("left", "right"):
        true, guess = (state[f"prior/{party}/{kind}"] for kind in ("true", "estimated"))
        assert isinstance(true, torch.Tensor) and isinstance(guess, torch.Tensor)
        assert priors(run)[party].off == pytest.approx((true - guess).abs().max().item(), abs=1e-6)
        assert selections(run)[party].tolist() == state[f"selected/{party}"].tolist()  # type: ignore[attr-defined]
        plane = planes(run)[party]
        assert (len(plane.rows), plane.total) == (300, 360)
        labels = state[f"plane/{party}/labels"]
        rows = state[f"plane/{party}/rows"]
        assert isinstance(labels, torch.Tensor) and isinstance(rows, torch.Tensor)
        assert plane.labels[-1] == labels[-1] and np.allclose(plane.rows[0], rows[0])
    assert leakage(run)["right"]["withheld"] == 7


def test_state_of_odd_shapes_is_left_out_not_drawn(tmp_path: Path) -> None:
    change: dict[str, object] = {
        "gate/left": torch.zeros(3),
        "gate/right": "x",
        "prior/left/true": torch.full((10,), torch.nan),
        "plane/left/rows": torch.full((4, 2), torch.inf),
        "plane/right/prototypes": torch.full((10, 2), torch.nan),
        "plane/right/labels": torch.full((360,), -1),
        "selected/left": torch.zeros(10, 2, dtype=torch.int64),
        "leak/right": {"purity": float("nan"), "words": "x"},
        "withheld/right": True,
        "notes": [],
        "ids": {"test": "many"},
    }
    folder = write_run(tmp_path / "run", change=change)
    page = page_of(folder)
    assert "notes" not in titles(page) and {"plane", "prior", "selection"} <= set(titles(page))
    assert "on the test ids went" in page.text and "Measured leakage" not in page.text
    assert dict(vertical_figures(data_of(folder)))["selected.png"] is not None


def test_the_selection_is_shown_where_it_still_selects(tmp_path: Path) -> None:
    course = torch.tensor([[[n, 8]] + [[0, 0]] * 9 for n in (2, 4, 6, 8)])
    change: dict[str, object] = {
        key.format(party): None
        for party in ("left", "right")
        for key in ("selected_rounds/{}", "selected_true/{}", "selected/{}")
    }
    change |= {"selected/left": course[-1], "selected_rounds/left": course}
    text = page_of(write_run(tmp_path / "run", change=change)).text
    assert "left, by predicted class, round 2: 4 of 8" in text
    assert "in all from 25 % to 100 %" in text
    change["selected_rounds/left"] = None
    text = page_of(write_run(tmp_path / "last", change=change)).text
    assert "left, by predicted class, round 40: 8 of 8" in text


def test_recalls_follow_the_rounds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=120)
    found = recalls(data_of(folder))
    assert found is not None and found.classes == DIGITS and found.rounds == tuple(range(121))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row["value"] for row in rows if row["metric"] == "recall_7"][-1]
    assert found.values[7, -1] == last
    page = page_of(folder)
    cells = sum(tag == "rect" and "heat" in str(a.get("class")) for tag, a in page.tags)
    assert cells <= 10 * (60 + 2 + 2 * 8)  # rounds are thinned; gates, shares kept


def test_an_unseen_class_is_named_with_its_metrics(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", unseen=("7",))
    rows = [
        {"round": at, "party": "left", "phase": "global", "split": "test", "metric": metric}
        | {"value": value, "seconds": 1.0}
        for at, value in ((0, 0.0), (40, 0.61))
        for metric in ("harmonic_mean", "unseen_accuracy")
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    text = page_of(folder).text
    assert "Taken out of the active party's training rows: 7." in text
    assert "harmonic mean of seen and unseen 0.0 % 61.0 % +61.0 points" in text


@pytest.mark.parametrize("count", [1, 2, 10, 60])
def test_any_number_of_classes_is_drawn(tmp_path: Path, count: int) -> None:
    classes = tuple(f"a class with a long name, number {n}" for n in range(count))
    path = report(write_run(tmp_path / "run", classes=classes, rounds=12))
    page = read(path)  # tags nest, leaves are known
    charts = [a for tag, a in page.tags if tag == "svg" and "chart" in str(a.get("class"))]
    assert len(charts) >= 11 and all(a.get("role") == "img" for a in charts)
    assert path.stat().st_size < 700_000
    numbers = re.findall(r'(?:x|y|cx|cy|width|height)="([^"]*)"', path.read_text())
    assert not [n for n in numbers if "nan" in n or "inf" in n or n.startswith("-")]


def test_names_of_classes_and_notes_are_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    folder = write_run(tmp_path / "run", classes=(bad, "b&c"), change={"notes": [bad]})
    page = page_of(folder)
    assert page.count("script") == 0 and bad in page.text


def test_png_figures_of_a_vertical_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=4)
    write_report(folder)
    found = {path.name: path.read_bytes()[:6] for path in (folder / "figures").iterdir()}
    names = ("balanced_accuracy", "alone", "gate", "recall", "gate_by_class", "priors")
    more = ("selected", "prototypes", "loss", "traffic")
    assert found == {f"{name}.png": b"\x89PNG\r\n" for name in (*names, *more)}


def test_vertical_runs_stand_side_by_side(tmp_path: Path) -> None:
    first = write_run(tmp_path / "proto")
    second = write_run(tmp_path / "masked", algorithm="vfl_masked", bonus=-0.05, state=False)
    text = page_of_both(first, second).text
    assert "masked absent parties masked (vfl_masked) 10.0 % 77.0 % −5.0 points" in text
    assert "Recall by class and run" in text and "no winner is named here" in text
    assert "Accuracy by party and run" not in text


def page_of_both(*folders: Path) -> Page:
    return read(report(*folders))


def test_runs_of_both_settings_share_one_page(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    folders = [make_run("h2"), make_run("alone", algorithm="local")]
    folders += [write_run(tmp_path / "proto"), write_run(tmp_path / "local", algorithm="vfl_local")]
    page = page_of_both(*folders)
    assert "differences are taken to h2 and proto" in page.text
    assert "alone minus h2" in page.text and "minus proto" in page.text
    assert "proto minus h2" not in page.text and "minus left" not in page.text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
