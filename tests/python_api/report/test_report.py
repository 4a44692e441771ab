"""The page as a reader gets it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from python_api.errors import InputError
from python_api.report import write_report

from .page import Page, read

report = partial(write_report, figures=False)  # drawing them takes most of the time


def test_the_page_says_what_ran_and_who_gained(make_run: Callable[..., Path]) -> None:
    page = read(report(make_run()))
    assert "Three parties for five rounds with H2Tune" in page.text
    assert "The run finished." in page.text
    assert "sentiment went from 51.0 % to 94.0 % (+43.0 points)" in page.text
    assert "Every party got better" in page.text


def test_the_headline_is_the_last_row_in_file_order(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run()
    row = {
        "round": 5,
        "party": "topic",
        "phase": "global",
        "split": "test",
        "metric": "accuracy",
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "value": 0.1111, "seconds": 40.0}) + "\n")
        file.write(json.dumps({**row, "split": "validation", "value": 0.9999}) + "\n")
    page = read(report(folder))
    assert "topic went from 26.0 % to 11.1 % (−14.9 points)" in page.text
    assert "Two of three parties got better" in page.text


def test_the_page_is_one_file_without_script(make_run: Callable[..., Path]) -> None:
    text = report(make_run()).read_text(encoding="utf-8")
    page = Page(text)
    assert page.count("script") == page.count("link") == page.count("img") == 0
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value is not None and value.startswith("#"), (tag, value)
    assert "url(" not in text and "@import" not in text and "http://" not in text


def test_every_link_inside_the_page_leads_somewhere(
    make_run: Callable[..., Path],
) -> None:
    one = report(make_run("one"))
    two = report(make_run("two"), make_run("three", algorithm="local"))
    for path in (one, two):
        page = read(path)
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in page.tags:
            if tag == "a":
                assert str(attributes["href"])[1:] in ids
            if "aria-labelledby" in attributes:
                assert attributes["aria-labelledby"] in ids


def test_figures_and_tables_have_a_text_alternative(
    make_run: Callable[..., Path],
) -> None:
    page = read(report(make_run()))
    assert page.count("table") == page.count("caption") >= 6
    assert page.count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    charts = [a for tag, a in page.tags if tag == "svg" and "chart" in str(a.get("class"))]
    assert charts and all(a.get("role") == "img" for a in charts)
    assert page.count("title") == 1 + len(charts)
    others = [a for tag, a in page.tags if tag == "svg" and a not in charts]
    assert all(a.get("aria-hidden") == "true" for a in others)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "\"'><img src=x onerror=1>", "a&b;$x$"]
)
def test_text_of_the_run_is_escaped(make_run: Callable[..., Path], text: str) -> None:
    folder = make_run(status="failed", last=2, reason=text)
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(
        config.replace('name = "topic"', f"name = {json.dumps(text)}").replace(
            'kind = "llama"', f"kind = {json.dumps(text)}"
        )
    )
    for name in ("metrics.jsonl", "traffic.jsonl"):
        lines = (folder / name).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        changed = [{**row, "party": text} if row["party"] == "topic" else row for row in rows]
        changed += [{**changed[-1], "op": text, "phase": text, "party": "intent"}]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in changed))
    (folder / "environment.json").write_text(json.dumps({text: [text], "more": {text: text}}))
    page = read(report(folder))
    assert page.count("script") == page.count("img") == 0
    assert " ".join(text.split()).rstrip(".") in page.text
    assert not [a for _, a in page.tags if "onerror" in a]


def test_png_figures_are_written(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    write_report(folder)
    found = {path.name: path.read_bytes()[:6] for path in (folder / "figures").iterdir()}
    names = ("accuracy", "loss", "traffic", "relation", "selection")
    assert found == {f"{name}.png": b"\x89PNG\r\n" for name in names}


def test_a_run_without_metrics_says_so(make_run: Callable[..., Path]) -> None:
    folder = make_run(metrics=False, status="failed", last=0, reason="no space left on device")
    page = read(write_report(folder))
    assert (
        "The run failed before its first round was complete: no space left on device" in page.text
    )
    assert "No accuracy was measured yet; no gain can be told." in page.text
    assert "metrics.jsonl holds no accuracy on a test split yet." in page.text
    assert not list((folder / "figures").iterdir())


def test_an_interrupted_run_says_how_far_it_came(make_run: Callable[..., Path]) -> None:
    page = read(report(make_run(status="interrupted", last=2)))
    assert "The run was interrupted after round 2 of 5" in page.text
    assert "2, local" in page.text


def test_a_folder_with_nothing_but_a_config_is_readable(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.toml":
            path.unlink()
    page = read(report(folder))
    for name in ("metrics.jsonl", "traffic.jsonl", "environment.json", "status.json"):
        assert f"{name} is missing" in page.text


def test_what_is_broken_is_named_and_the_rest_is_shown(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run()
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("[1, 2]\n" + text + '{"round": 5, "par')
    (folder / "environment.json").write_text("{")
    weights = next((folder / "checkpoints").rglob("server.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    page = read(report(folder))
    assert "metrics.jsonl: line 1 is not a JSON object and was left out" in page.text
    assert "metrics.jsonl: the last line is not a JSON object and was left out" in page.text
    assert "environment.json is not a JSON object and was left out" in page.text
    assert "checkpoints/: no round in it is whole" in page.text
    assert "sentiment went from 51.0 % to 94.0 %" in page.text


def test_rows_of_odd_types_do_not_break_the_page(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    odd = [
        {
            "round": None,
            "party": "topic",
            "metric": "accuracy",
            "split": "test",
            "value": 0.5,
        },
        {
            "round": 5,
            "party": "topic",
            "phase": "local",
            "metric": "loss",
            "split": "test",
            "value": None,
        },
        {
            "round": 5,
            "party": "topic",
            "phase": "local",
            "metric": "loss",
            "split": "test",
            "value": "x",
        },
        {
            "round": 5,
            "party": "new",
            "phase": "local",
            "metric": "loss",
            "split": "test",
            "value": 1e300,
        },
        {},
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in odd)
    assert "topic went from 26.0 % to 88.0 %" in read(report(folder)).text


@pytest.mark.parametrize("content", [None, "algorithm = "])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "x"
    with pytest.raises(InputError, match="no such folder"):
        report(folder)
    folder.mkdir()
    if content is not None:
        (folder / "config.toml").write_text(content)
    with pytest.raises(InputError, match="no config.toml" if content is None else "not valid TOML"):
        report(folder)
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


def test_a_bad_second_folder_leaves_nothing_half_written(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run()
    with pytest.raises(InputError):
        report(folder, tmp_path / "missing")
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


def test_runs_stand_side_by_side(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (
        make_run("shared"),
        make_run("alone", algorithm="local", bonus=-0.04),
    )
    out = tmp_path / "both" / "report.html"
    assert write_report(first, second, out=out) == out
    page = read(out)
    assert "alone minus shared" in page.text and "−4.0 points" in page.text
    assert "no winner is named here" in page.text
    assert "Every party trained alone." in page.text
    assert (out.parent / "figures" / "shared" / "accuracy.png").is_file()
    assert (out.parent / "figures" / "alone" / "accuracy.png").is_file()
    assert not (out.parent / "figures" / "alone" / "traffic.png").exists()


def test_two_folders_of_one_name_are_told_apart(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    first = make_run("a")
    (tmp_path / "deep").mkdir()
    second = make_run("deep/a", algorithm="local")
    page = report(first, second)
    assert page == first / "comparison.html"  # a run's own report stays what it was
    assert "a-2 minus a" in read(page).text


@pytest.mark.parametrize(
    ("basis", "said"),
    [
        ("trained", "As published, no transfer between parties was seen."),
        ("svd", "whose frozen base has the same hash"),
        ("rotated", "turned by a private orthogonal matrix"),
    ],
)
def test_the_basis_is_named(make_run: Callable[..., Path], basis: str, said: str) -> None:
    page = read(report(make_run(basis=basis)))
    assert f'The basis: "{basis}"' in page.text and said in page.text


def test_what_is_not_protected_is_said(make_run: Callable[..., Path]) -> None:
    page = read(report(make_run()))
    assert "no noise, clipping, encryption or secure sum was applied" in page.text
    assert "All parties of this run lived in one process" in page.text
    assert "float32 (4, slots, 16, 16)" in page.text  # from the manifest
    assert "secret" not in page.text  # declared for an op that was never called


def test_traffic_totals_are_those_of_the_rows(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    rows = [json.loads(line) for line in (folder / "traffic.jsonl").read_text().splitlines()]
    up = sum(r["bytes"] for r in rows if (r["op"], r["direction"]) == ("upload", "up"))
    assert up == 4 * 3 * (4 * 7 * 16 * 16 * 4 + 400)
    assert f"{up / 1000:.1f} kB" in read(report(folder)).text


def test_the_same_folder_gives_the_same_page(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    first = report(folder).read_bytes()
    assert report(folder).read_bytes() == first


def test_many_rounds_and_parties_stay_readable(make_run: Callable[..., Path]) -> None:
    page = read(report(make_run(rounds=120)))
    charts = [a for tag, a in page.tags if tag == "svg" and "chart" in str(a.get("class"))]
    assert len(charts) >= 3
    circles = sum(tag == "circle" for tag, _ in page.tags)
    assert circles < 100  # no marker on each of 120 points


def test_the_page_says_how_little_was_measured(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    assert "fewer than 100 test rows" not in read(report(folder)).text  # an older folder
    environment = json.loads((folder / "environment.json").read_text())
    environment["rows"] = {
        "sentiment": {"train": 58, "validation": 6, "test": 12},
        "topic": {"train": 720, "validation": 80, "test": 200},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    text = read(report(folder)).text
    assert "58 / 6 / 12" in text and "720 / 80 / 200" in text
    assert "fewer than 100 test rows: sentiment (12, one is 8.3 points)." in text
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[train]", "[eval]\nlimit = 40\n\n[train]"))
    assert "sentiment (12, one is 8.3 points), topic (40, one is 2.5" in read(report(folder)).text


def test_the_times_say_what_they_count(make_run: Callable[..., Path]) -> None:
    text = read(report(make_run())).text
    assert "reading the data, building the models, all rounds and their evaluations" in text
    assert "counted from where" not in text


@pytest.mark.parametrize("basis", ["trained", "svd"])
def test_the_page_does_not_speak_of_how_the_package_came_about(
    make_run: Callable[..., Path], basis: str
) -> None:
    text = read(report(make_run(basis=basis))).text
    assert "In a small experiment (three decoders" in text and "our probe" not in text
