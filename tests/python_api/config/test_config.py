"""Precedence, resolution, dumps, and one line for every slip."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from python_api.config import (
    dump_config,
    explain,
    ignored,
    known_algorithms,
    load_config,
    parse_set,
)
from python_api.errors import InputError


def source(**keys: Any) -> dict[str, Any]:
    party = {"name": "a", "task": {"data": "builtin:topic"}} | keys.pop("own", {})
    return {"algorithm": "h2tune", "party": [party]} | keys


def refused(values: Any, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load_config(values, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_each_level_beats_the_one_before() -> None:
    def lr(**keys: Any) -> float:
        return load_config(source(**keys)).parties[0].train.lr

    assert lr() == 2e-3
    levels: dict[str, Any] = {"h2tune": {"basis": "svd"}}
    assert lr(**levels) == 1e-2
    levels["train"] = {"lr": 3e-3}
    assert lr(**levels) == 3e-3
    levels["defaults"] = {"lr": 4e-3}
    assert lr(**levels) == 4e-3
    levels["own"] = {"lr": 5e-3}
    assert lr(**levels) == 5e-3
    for overrides, wanted in (
        ({"train.lr": 6e-3}, 6e-3),
        ({"train.lr": 6e-3, "party.*.lr": 7e-3}, 7e-3),
        ({"party.a.lr": 8e-3, "party.*.lr": 7e-3}, 8e-3),
    ):
        assert load_config(source(**levels), overrides).parties[0].train.lr == wanted


def test_device_beats_all() -> None:
    config = load_config(source(own={"device": "cuda"}), {"party.a.device": "cuda"}, device="cpu")
    assert config.device == "cpu" and config.parties[0].device is None


def test_steps_and_epochs_exclude_each_other_at_one_level_only() -> None:
    party = load_config(source(train={"steps": 4}, own={"epochs": 2})).parties[0]
    assert (party.train.steps, party.train.epochs) == (None, 2)
    party = load_config(source(train={"epochs": 2}), {"party.*.steps": 3}).parties[0]
    assert party.train.steps == 3
    refused(source(train={"steps": 4, "epochs": 2}), "train", "epochs and steps")


def test_svd_sets_its_defaults_and_any_key_overrides() -> None:
    config = load_config(source(h2tune={"basis": "svd", "alternate": "step"}))
    party = config.parties[0]
    assert (config.rounds, config.h2tune.middle_rank, party.rank) == (120, 32, 32)
    assert (config.h2tune.select, config.h2tune.alternate) == ("block", "step")
    assert config.h2tune.relation == "last"  # a P of each party's own would give each another T
    free = {"basis": "svd", "relation": "depth"}
    assert load_config(source(h2tune=free)).h2tune.relation == "depth"
    assert (party.train.steps, party.train.batch_size, party.train.warmup) == (4, 32, 10)
    assert party.train.schedule == "cosine" and party.alpha == party.rank
    refused(source(h2tune={"basis": "svd"}, defaults={"alpha": 8}), "defaults.alpha", "no alpha")


def test_generation_has_longer_texts_unless_it_says_so(tmp_path: Path) -> None:
    task = {"kind": "generation", "train": "q.jsonl", "question": "q", "answer": "a"}
    assert load_config(source(own={"task": task})).parties[0].train.max_length == 768
    values = source(own={"task": task}, train={"max_length": 99})
    assert load_config(values).parties[0].train.max_length == 99


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'algorithm = "local"\n[[party]]\nname = "a"\n'
        'task = { train = "x/rows.csv", text = ["t", "u"], label = "l" }\n'
    )
    party = load_config(path).parties[0]
    assert party.task.train == str(tmp_path / "x" / "rows.csv")
    assert party.task.text == ("t", "u")


@pytest.mark.parametrize("algorithm", known_algorithms())
@pytest.mark.parametrize("full", [False, True])
def test_config_written_to_a_file_runs_as_the_name_does(
    algorithm: str, full: bool, tmp_path: Path
) -> None:
    path = tmp_path / "f.toml"
    path.write_text(explain(algorithm, full=full))
    assert load_config(path) == load_config(algorithm)


@pytest.mark.parametrize(
    "values",
    [
        source(),
        source(h2tune={"basis": "svd"}, own={"epochs": 3}),
        source(train={"steps": 5}, own={"epochs": 1, "alpha": 3, "modules": ["q", "v"]}),
        source(models={"m": {"kind": "gpt2"}}, own={"model": "m", "device": "cpu"}),
        source(own={"model": {"path": "some/model", "prompt": "Q {question}"}}),
        source(own={"model": {"pretrain": "none", "config": {"tie_word_embeddings": True}}}),
        source(
            own={"task": {"kind": "generation", "train": "q.csv", "question": "q", "answer": "a"}}
        ),
        source(own={"task": {"train": "q.csv", "test": 0.3, "text": ["a", "b"], "label": "c"}}),
    ],
)
def test_a_dump_loads_back_to_an_equal_config(values: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(values)
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert path.read_text().splitlines()[0] == 'algorithm = "h2tune"'


def test_three_parties_differ_in_everything_by_default() -> None:
    parties = load_config("h2tune").parties
    for look in (
        lambda p: p.model.kind,
        lambda p: p.model.hidden_size,
        lambda p: p.rank,
        lambda p: p.task.data,
    ):
        assert len({look(p) for p in parties}) == 3
    assert len({p.model.layers for p in parties}) > 1


def test_defaults_hold_columns_and_parties_hold_files() -> None:
    values = source(
        defaults={"task": {"text": "t", "label": "l"}}, own={"task": {"train": "a.csv"}}
    )
    task = load_config(values).parties[0].task
    assert (task.text, task.label) == (("t",), "l")


def test_set_values_are_toml() -> None:
    assert parse_set(["a.b=1e-3", 'c="x"', "d=[1, 2]"]) == {"a.b": 1e-3, "c": "x", "d": [1, 2]}
    for item in ("rank", "=3", "a..b=1"):
        with pytest.raises(InputError, match="KEY=VALUE"):
            parse_set([item])
    with pytest.raises(InputError, match="needs quotes"):
        parse_set(["h2tune.share=shuffled"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (source(sed=1), ["sed", "nearest known: seed"]),
        (source(own={"rnak": 1}), ["party.a.rnak", "nearest known: rank"]),
        (source(train={"rounds": 3}), ["train.rounds", "`rounds` belongs at the top of the file"]),
        (source(own={"rounds": 3}), ["before the first [table]"]),
        (source(train={"rank": 3}), ["train.rank", "[defaults]"]),
        (source(own={"middle_rank": 3}), ["party.a.middle_rank", "under [h2tune]"]),
        (source(own={"hidden_size": 3}), ["model table"]),
        (source(own={"name": "server"}), ["'server' is reserved"]),
        (source(own={"name": "all"}), ["'all' is reserved"]),
        (source(own={"name": "a b"}), ["letters, digits"]),
        (source(own={"name": None}), ["party 1", "no name"]),
        (source(party=[]), ["at least one [[party]]"]),
        (
            source(party=[{"name": "a", "task": {"data": "builtin:topic"}}] * 2),
            ["'a' is taken by party 1"],
        ),
        (source(own={"modules": ["q", "gat"]}), ["'gat'", "nearest known: gate"]),
        (source(own={"slots": {"w": "x"}}), ["party.a.slots", "'w'"]),
        (source(own={"model": {"hidden_size": 65}}), ["4 does not divide hidden_size = 65"]),
        (source(own={"model": "basis"}), ["no model 'basis'"]),
        (source(own={"model": {"path": "x", "layers": 2}}), ["path and layers"]),
        (source(own={"rank": 0}), ["party.a.rank: 0", "at least 1"]),
        (source(own={"rank": True}), ["party.a.rank: true", "a whole number"]),
        (source(own={"lr": "x"}), ["party.a.lr: 'x'", "a number"]),
        (source(own={"task": {"data": "builtin:topc"}}), ["nearest known: topic"]),
        (source(own={"task": {"train": "a.csv", "label": "l"}}), ["party.a.task: no text"]),
        (source(own={"task": {}}), ["party.a.task: no train"]),
        (source(own={"task": {"data": "builtin:topic", "test": 0.5}}), ["?test=N"]),
        (source(h2tune={"share": "maybe"}), ["h2tune.share", 'true, false, "shuffled"']),
        (source(algorithm="h2tun"), ["nearest known: h2tune"]),
        (source(device="gpu"), ["device: 'gpu'", "cuda"]),
        (source(train=3), ["train: 3", "a table"]),
        (
            source(models={"m": {"pretrain": {"text": "own"}}}, own={"model": "m"}),
            ["models.m.pretrain.text", "own"],
        ),
    ],
)
def test_a_slip_is_one_line(values: dict[str, Any], words: list[str]) -> None:
    refused(values, *words)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    refused(tmp_path / "none.toml", "no such file")
    refused("h2tne", "nearest known: h2tune")
    (tmp_path / "empty.toml").write_text("")
    refused(tmp_path / "empty.toml", "is empty")
    (tmp_path / "bad.toml").write_text("a = = 1\n")
    refused(tmp_path / "bad.toml", "bad.toml", "line 1")


def test_overrides_name_what_they_do_not_find() -> None:
    refused(source(), "--set party.b", "expected one of a", overrides={"party.b.rank": 3})
    refused(source(), "--set party.a.rnak", "nearest", overrides={"party.a.rnak": 3})
    refused(source(), "rounds", "at least 1", overrides={"rounds": 0})


def test_the_table_of_another_algorithm_is_checked_ignored_and_named() -> None:
    given = source(algorithm="local", h2tune={"share": False, "upload": "ridge"})
    line = "[h2tune]: share, upload are ignored; local reads basis, alternate"
    assert ignored(load_config(given)) == line
    assert ignored(load_config(source(algorithm="local", h2tune={"alternate": "joint"}))) is None
    assert ignored(load_config(source(algorithm="local", h2tune={"basis": "svd"}))) is None
    assert ignored(load_config(source(h2tune={"share": False}))) is None
    refused(source(algorithm="local", h2tune={"shar": False}), "nearest known: share")
    for name in ("local", "fedit", "centralised"):
        assert ignored(load_config(name)) is None
        assert "middle_rank" not in explain(name)


def test_a_default_config_names_both_epochs_and_steps_and_sets_one() -> None:
    lines = [line.split(" #")[0].rstrip() for line in explain("h2tune", full=True).splitlines()]
    assert "steps = 20" in lines and "# epochs = ..." in lines and "epochs = 1" not in lines


def test_what_pretraining_reads_is_written_out() -> None:
    def text(**keys: Any) -> str | None:
        config = load_config(source(**keys))
        assert load_config(tomllib.loads(dump_config(config))) == config
        return config.parties[0].model.pretrain.text

    assert text() == "own" and 'text = "own"' in dump_config(load_config(source()))
    assert text(own={"model": {"pretrain": {"steps": 7}}}) == "own"
    assert text(models={"m": {}}, own={"model": "m"}) == "builtin"
    assert text(own={"model": {"pretrain": "none"}}) == "none"
    # whether these are above the limit is for transformers to count
    assert text(own={"model": {"hidden_size": 1024, "layers": 8}}) is None
    refused(source(own={"model": {"path": "x", "config": {"a": 1}}}), "path and config")
