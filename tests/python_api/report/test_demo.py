"""The demo end to end, on steps too few to learn anything and one small kernel case."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from python_api import demo as module
from python_api.demo import demo
from python_api.errors import InputError

TINY = {
    "rounds": 1,
    "train.steps": 1,
    "party.*.model.pretrain.steps": 1,
    "eval.limit": 8,
}


TABLES = {"rounds": 1, "train.steps": 1}


def tiny_case(entry: Any, case: Any, dtype: str) -> bool:
    return case.sizes.get("N") == 1


def test_the_demo_runs_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKERNELS_CACHE", str(tmp_path / "cache"))
    small = functools.partial(
        module._speed, select=lambda entry, case, dtype: case.sizes.get("N") == 1
    )
    monkeypatch.setattr(module, "_speed", small)
    said: list[str] = []
    out = tmp_path / "demo"
    page = demo(out, overrides=TINY, on_tables=TABLES, say=said.append)

    assert page == out / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "h2tune minus local" in text and "Kernel times on this machine" in text
    assert "<script" not in text
    assert "proto_evfl minus" not in text and "minus vfl_masked" in text
    for algorithm in module.ALGORITHMS:
        assert (out / algorithm / "report.html").is_file()
        assert (out / algorithm / "status.json").read_text().count('"finished"') == 1
    assert str(page) in "\n".join(said)
    assert sum(line.startswith("  fedkernels ") for line in said) == 4

    # an earlier demo is overwritten; two runs are enough to see it
    monkeypatch.setattr(module, "ALGORITHMS", ("h2tune", "vfl_masked"))
    again = demo(out, overrides=TINY, on_tables=TABLES, say=lambda line: None)
    assert again == page


def test_what_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no demo"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
