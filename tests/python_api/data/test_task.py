"""Splits, labels, built-in data."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from python_api.config import TaskConfig
from python_api.data import builtin_task, load_task, read_rows, task_from_rows
from python_api.data.builtin import NEGATION, OWN, PAIRS, RARE
from python_api.data.task import split
from python_api.errors import InputError


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(train: str, **keys: Any) -> TaskConfig:
    return TaskConfig(**{"train": train, "text": ("text",), "label": "label"} | keys)


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [{"text": f"t{i}", "label": "ab"[i % 4 == 0]} for i in range(count)]


def test_shares_are_stratified_and_fixed_by_seed_and_party(tmp_path: Path) -> None:
    config = task(write(tmp_path / "r.jsonl", rows()))
    data = load_task(config, seed=0, party="p")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [29, 3, 8]
    assert Counter(e.label for e in data.test) == {0: 6, 1: 2}
    texts = {e.text for s in (data.train, data.validation, data.test) for e in s}
    assert texts == {f"t{i}" for i in range(40)}
    assert load_task(config, seed=0, party="p") == data
    assert load_task(config, seed=1, party="p").test != data.test
    assert load_task(config, seed=0, party="q").test != data.test


def test_no_class_leaves_the_training_rows() -> None:
    rest, drawn = split(["a"] * 9 + ["b"], 0.5, draw=random.Random(0), key=str)
    assert rest.count("b") == 1 and len(drawn) == 5


def test_text_columns_are_joined_by_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [r | {"title": "T"} for r in rows()])
    data = load_task(task(path, text=("title", "text")), seed=0, party="p")
    assert all(e.text.startswith("T\nt") for e in data.train)


def test_generation_keeps_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"q": f"{i}+1", "a": str(i + 1)} for i in range(10)])
    config = TaskConfig(kind="generation", train=path, question="q", answer="a")
    data = load_task(config, seed=0, party="p")
    assert len(data.test) == 2 and data.labels == ()
    assert all(int(e.text[0]) + 1 == int(e.answer or "") for e in data.train)


def test_a_label_only_in_test_is_named(tmp_path: Path) -> None:
    train = write(tmp_path / "r.jsonl", rows())
    test = write(tmp_path / "s.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    with pytest.raises(InputError, match=r"s.jsonl:2: label 'c' is only in the test rows.*: a, b"):
        load_task(task(train, test=test), seed=0, party="p")


def test_a_row_without_its_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [*rows(3), {"txt": "x", "label": "a"}])
    with pytest.raises(InputError, match=r"r.jsonl:4: no column 'text'; found txt, label"):
        load_task(task(path), seed=0, party="p")
    path = write(tmp_path / "r.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match=r"r.jsonl:1: no column 'label'"):
        load_task(task(path), seed=0, party="p")
    path = write(tmp_path / "r.jsonl", [{"text": "x", "label": "a"}] * 5)
    with pytest.raises(InputError, match=r"party.p.task.label: .* one label, 'a'"):
        load_task(task(path), seed=0, party="p")


def test_rows_to_predict_need_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"text": "x"}, {"text": "y", "label": "b"}])
    found = task_from_rows(read_rows(path), task(path), labels=("a", "b"))
    assert [e.label for e in found] == [None, 1]
    with pytest.raises(InputError, match=r"r.jsonl:2: label 'b'"):
        task_from_rows(read_rows(path), task(path), labels=("a", "c"))


@pytest.mark.parametrize("name", ["sentiment", "topic", "intent"])
def test_builtin_data_is_fixed_by_its_seed(name: str) -> None:
    data = builtin_task(name, seed=3)
    assert data == builtin_task(f"builtin:{name}", seed=3)
    assert data != builtin_task(name, seed=4)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [720, 80, 200]
    assert max(len(e.text.encode()) for e in data.train + data.test) <= 32
    assert {e.label for e in data.train} == set(range(len(data.labels)))


def test_polarity_xor_negation_decides_every_task() -> None:
    good = {g for g, _ in PAIRS + OWN["topic"] + OWN["intent"]}
    is_good = {
        "sentiment": {"good"},
        "topic": {"food", "home", "travel"},
        "intent": {"order", "praise"},
    }
    for name, labels in is_good.items():
        data = builtin_task(name, seed=0)
        for example in data.train + data.test:
            words = example.text.split()
            said = (words[-1] in good) != (NEGATION in words)
            assert said == (data.labels[example.label or 0] in labels)


def test_sentiment_rarely_sees_two_pairs_in_training_only() -> None:
    rare = {word for pair in RARE for word in pair}
    data = builtin_task("sentiment", seed=0)
    share = [
        sum(e.text.split()[-1] in rare for e in part) / len(part)
        for part in (data.train, data.test)
    ]
    assert 0.05 < share[0] < 0.15 and 0.4 < share[1] < 0.6
    own = {word for pairs in OWN.values() for pair in pairs for word in pair}
    assert not any(e.text.split()[-1] in own for e in data.train + data.test)
