"""The vertical setting: precedence, presets, dumps, and one line for every slip."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from python_api.algorithms import ON_TABLES, make
from python_api.config import (
    ProtoEvflConfig,
    dump_config,
    explain,
    ignored,
    load_config,
)
from python_api.config.presets import LITERAL
from python_api.config.settings import VERTICAL, setting_of
from python_api.errors import InputError
from python_api.notices import notices

DIGITS = "builtin:digits?views=2&view="


def source(**keys: Any) -> dict[str, Any]:
    """bank (active) and shop; `bank`, `shop` change their tables, other keys the top."""
    parties = [
        {"name": "bank", "active": True, "table": "bank.csv", "id": "id"} | keys.pop("bank", {}),
        {"name": "shop", "table": "shop.csv", "id": "id"} | keys.pop("shop", {}),
    ]
    values = {"algorithm": "proto_evfl", "data": {"label": "y"}, "party": parties} | keys
    return {key: value for key, value in values.items() if value is not None}


def refused(values: Any, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load_config(values, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_the_setting_follows_from_the_algorithm_or_from_tables() -> None:
    assert load_config(source()).setting == "vertical"
    assert load_config("h2tune").setting == "tuning"
    assert load_config("centralised").setting == "tuning"
    assert load_config(source(algorithm="centralised")).setting == "vertical"
    assert all(setting_of(name, {}) == "vertical" for name in VERTICAL)


def test_what_is_built_in() -> None:
    config = load_config(source())
    train = config.train
    assert (config.rounds, train.lr, train.batch_size, train.keep) == (40, 3e-3, 64, "best")
    assert (train.weight_decay, train.clip) == (1e-3, 1.0)
    assert config.proto_evfl == ProtoEvflConfig()
    assert config.data is not None and config.data.noise == 0.3
    assert [party.label for party in config.vertical_parties] == ["y", None]
    model = config.vertical_parties[0].model
    assert (model.kind, model.hidden, model.out, model.shape) == ("mlp", (64,), 32, None)


def test_the_default_is_two_views_of_digits() -> None:
    config = load_config("proto_evfl")
    assert config.data is not None
    assert (config.data.label, config.data.overlap, config.data.imbalance) == ("digit", 0.1, 50.0)
    tables = [(party.name, party.table, party.active) for party in config.vertical_parties]
    assert tables == [("left", f"{DIGITS}1", True), ("right", f"{DIGITS}2", False)]


def test_each_level_beats_the_one_before() -> None:
    def lr(**keys: Any) -> float:
        return load_config(source(**keys)).parties[1].train.lr

    levels: dict[str, Any] = {}
    assert lr() == 3e-3
    levels["train"] = {"lr": 4e-3}
    assert lr(**levels) == 4e-3
    levels["defaults"] = {"lr": 5e-3}
    assert lr(**levels) == 5e-3
    levels["shop"] = {"lr": 6e-3}
    assert lr(**levels) == 6e-3
    for overrides, wanted in (({"train.lr": 7e-3}, 7e-3), ({"party.shop.lr": 8e-3}, 8e-3)):
        assert load_config(source(**levels), overrides).parties[1].train.lr == wanted


def test_literal_sets_every_row_and_any_key_overrides() -> None:
    made = load_config(source(proto_evfl={"preset": "literal"})).proto_evfl
    assert {key: getattr(made, key) for key in LITERAL} == LITERAL
    default = ProtoEvflConfig()
    assert all(getattr(default, key) != value for key, value in LITERAL.items())
    given = {"preset": "literal", "lower": 2}
    assert load_config(source(proto_evfl=given)).proto_evfl.lower == 2
    overrides = {"proto_evfl.preset": "literal", "proto_evfl.head": "linear"}
    made = load_config(source(), overrides).proto_evfl
    assert (made.head, made.select) == ("linear", "class")


def test_set_reaches_tables_parties_and_encoders() -> None:
    overrides = {"data.overlap": 0.02, "party.*.model.out": 16, "party.shop.model.hidden": [8, 4]}
    config = load_config(source(shop={"model": {"hidden": [32]}}), overrides)
    assert config.data is not None and config.data.overlap == 0.02
    assert [party.model.out for party in config.vertical_parties] == [16, 16]
    assert [party.model.hidden for party in config.vertical_parties] == [(64,), (8, 4)]


def test_encoders_are_merged_key_by_key() -> None:
    config = load_config(source(defaults={"model": {"out": 8}}, shop={"model": {"hidden": []}}))
    assert [(p.model.hidden, p.model.out) for p in config.vertical_parties] == [((64,), 8), ((), 8)]
    cnn = {"kind": "cnn", "shape": [1, 2, 3]}
    config = load_config(source(defaults={"model": cnn}, shop={"model": {"kind": "mlp"}}))
    assert [p.model.shape for p in config.vertical_parties] == [(1, 2, 3), None]


def test_paths_count_from_the_file_and_labels_may_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'algorithm = "proto_evfl"\n[data]\nlabels = [0, 1, 2]\nunseen = [2]\n'
        '[[party]]\nname = "a"\nactive = true\ntable = "x/a.csv"\nid = "i"\nlabel = "y"\n'
        f'[[party]]\nname = "b"\ntable = "{DIGITS}2"\nid = "id"\n'
    )
    config = load_config(path)
    assert [p.table for p in config.vertical_parties] == [str(tmp_path / "x/a.csv"), f"{DIGITS}2"]
    assert config.data is not None
    assert (config.data.label, config.data.labels, config.data.unseen) == (
        "y",
        ("0", "1", "2"),
        ("2",),
    )


@pytest.mark.parametrize(
    "values",
    [
        source(),
        source(proto_evfl={"preset": "literal", "tau": 0.2, "l_ct": 0.5}),
        source(train={"steps": 5}, shop={"epochs": 1, "l_ct": 1, "label": "kind", "device": "cpu"}),
        source(data={"label": "y", "labels": ["a", "b", "c"], "unseen": ["c"], "test": 0}),
        source(defaults={"model": {"kind": "cnn", "shape": [1, 2, 2]}}),
        source(shop={"features": ["u", "v"], "categorical": ["v"], "model": {"hidden": []}}),
        source(h2tune={"share": False}),
        source(algorithm="centralised", proto_evfl={"lam": 0.2, "lower": 2}),
        source(algorithm="centralised", proto_evfl={"preset": "literal"}),
    ],
)
def test_a_dump_loads_back_to_an_equal_config(values: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(values)
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert "max_length" not in path.read_text()
    assert ignored(load_config(path)) == ignored(config)


def test_a_tuning_config_keeps_the_tables_of_the_other_setting(tmp_path: Path) -> None:
    config = load_config("local", {"data.overlap": 0.5, "data.labels": [], "proto_evfl.lam": 1})
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert ignored(config) == (
        "[data]: labels, overlap are ignored; local reads none of it; "
        "[proto_evfl]: lam is ignored; local reads none of it"
    )


def test_what_an_algorithm_does_not_read_is_named() -> None:
    assert ignored(load_config(source(proto_evfl={"lam": 0.2, "preset": "literal"}))) is None
    line = ignored(load_config(source(proto_evfl={"adjust": True})))
    assert line == "[proto_evfl]: adjust is ignored; proto_evfl reads the others"
    given = source(algorithm="centralised", proto_evfl={"lam": 0.2, "lower": 2}, h2tune={})
    line = "[proto_evfl]: lam is ignored; centralised reads preset, lower, upper, min_replies, tau"
    assert ignored(load_config(given)) == line
    line = ignored(load_config(source(h2tune={"share": False})))
    assert line == "[h2tune]: share is ignored; proto_evfl reads none of it"
    refused(source(h2tune={"shar": False}), "h2tune.shar", "nearest known: share")


def test_what_config_writes_names_every_key_once() -> None:
    text = explain("proto_evfl", full=True)
    values = tomllib.loads(text)
    assert set(values["proto_evfl"]) == set(ProtoEvflConfig.model_fields) - {"adjust", "l_ct"}
    assert "max_length" not in text and "adjust" not in text and "# l_ct = ..." in text
    assert "rows per step; default 64" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        # a key of fine-tuning, a key below the wrong header, a slip
        (source(train={"max_length": 64}), ["train.max_length", "means nothing to tables"]),
        (source(shop={"head_lr": 0.1}), ["party.shop.head_lr", "means nothing to tables"]),
        (source(shop={"rank": 4}), ["party.shop.rank", "belongs to fine-tuning"]),
        (source(models={"m": {}}), ["models", "belongs to fine-tuning"]),
        (source(shop={"overlap": 0.1}), ["party.shop.overlap", "belongs under [data]"]),
        (source(data={"label": "y", "lam": 0.1}), ["data.lam", "under [proto_evfl]"]),
        (source(overlap=0.1), ["overlap", "belongs under [data]"]),
        (source(train={"hidden": [3]}), ["train.hidden", "in a party's model table"]),
        (source(shop={"featurs": ["a"]}), ["party.shop.featurs", "nearest known: features"]),
        (source(proto_evfl={"selct": "class"}), ["proto_evfl.selct", "nearest known: select"]),
        (source(data={"label": "y", "rounds": 3}), ["data.rounds", "before the first [table]"]),
        # parties
        (source(bank={"active": False}), ["none is active", "exactly one"]),
        (source(shop={"active": True}), ["bank and shop are active"]),
        (source(shop={"name": "aligned"}), ["'aligned' is reserved"]),
        (source(shop={"table": None}), ["party.shop.table", "None"]),
        (source(shop={"table": "shop.xls"}), ["party.shop.table", ".parquet"]),
        (source(shop={"table": "builtin:digts"}), ["party.shop.table", "nearest known: digits"]),
        (source(shop={"table": f"{DIGITS}3"}), ["view=3", "expected 1 to 2"]),
        (source(shop={"model": {"out": 16}}), ["party.shop.model.out: 16", "one width for all"]),
        (source(shop={"model": {"hidden": [0]}}), ["party.shop.model.hidden", "at least 1"]),
        (source(shop={"model": {"kind": "cnn"}}), ["party.shop.model.shape: is missing"]),
        (source(shop={"model": {"shape": [1, 2, 2]}}), ['not read for kind = "mlp"']),
        (source(shop={"model": {"kind": "cnn", "shape": [8, 8]}}), ["[8, 8]", "three whole"]),
        (source(shop={"model": "shared"}), ["party.shop.model: 'shared'", "expected a table"]),
        (source(shop={"features": ["id", "x"]}), ["'id' is the id column"]),
        (source(shop={"features": ["x", "x"]}), ["'x' stands twice"]),
        (source(shop={"label": "id"}), ["party.shop.label", "id column"]),
        (source(shop={"features": ["x"], "categorical": ["z"]}), ["'z' is not among the features"]),
        (source(shop={"device": "gpu"}), ["party.shop.device: 'gpu'"]),
        # data
        (source(data=None), ["data.label: is missing", "bank"]),
        (source(bank={"label": "z"}), ["party.bank.label: 'z'", "data.label is 'y'"]),
        (source(data={"label": "y", "overlap": 0}), ["data.overlap", "above 0"]),
        (source(data={"label": "y", "overlap": 2}), ["data.overlap", "at most 1"]),
        (source(data={"label": "y", "imbalance": 0.5}), ["data.imbalance", "at least 1"]),
        (source(data={"label": "y", "test": "t.csv"}), ["data.test"]),
        (source(data={"label": "y", "labels": ["a"]}), ["data.labels: 'a' alone"]),
        (source(data={"label": "y", "labels": ["a", "a"]}), ["data.labels: 'a' stands twice"]),
        (
            source(data={"label": "y", "labels": ["a", "b"], "unseen": ["c"]}),
            ["data.unseen: 'c'", "one of data.labels"],
        ),
        # method
        (source(proto_evfl={"prior": "mix"}), ["proto_evfl.prior", '"mixed", "local"']),
        (source(proto_evfl={"preset": 3}), ["proto_evfl.preset: 3"]),
        (source(proto_evfl={"lam": 1.5}), ["proto_evfl.lam: 1.5", "at most 1"]),
        (source(proto_evfl={"upper": 0}), ["proto_evfl.upper: 0", "at least 1"]),
    ],
)
def test_a_slip_is_one_line(values: dict[str, Any], words: list[str]) -> None:
    refused(values, *words)


def test_two_parties_or_more_but_for_one_algorithm() -> None:
    values = source()
    values["party"].pop()
    refused(values, "bank alone", "two parties or more")
    assert len(load_config(values | {"algorithm": "vfl_local"}).parties) == 1


def test_what_is_not_there_is_named() -> None:
    values = source()
    del values["party"][1]["id"]
    refused(values, "party.shop: no id", "the id column")
    values = source()
    del values["party"][0]["table"]
    refused(values, "party.bank: no table", "built-in")


def test_tables_belong_to_no_fine_tuning() -> None:
    party = {"name": "a", "task": {"data": "builtin:topic"}}
    for key in ("table", "active", "hidden"):
        values = {"algorithm": "h2tune", "party": [party | {key: "x"}]}
        refused(values, f"party.a.{key}", "belongs to tables by parties", "proto_evfl")
    values = {"algorithm": "h2tune", "party": [party | {"data": "builtin:topic"}]}
    refused(values, "party.a.data", "in a party's task table")


def test_an_algorithm_without_tables_is_one_line() -> None:
    if "centralised" in ON_TABLES:
        made = make(load_config(source(algorithm="centralised")))
        assert made.name == "centralised"
        assert type(made) is not type(make(load_config("centralised")))
    else:
        with pytest.raises(InputError, match="centralised does not run on tables; expected one"):
            make(load_config(source(algorithm="centralised")))


def test_cosines_alone_say_nothing_to_the_vote_and_a_notice_says_that() -> None:
    keys = {"data.unseen": ["0"], "proto_evfl.share": "relations"}
    (line,) = notices(load_config("proto_evfl", keys), rows={}, slots={})
    assert 'unseen = "vote" would know 0' in line
    for more in ({"proto_evfl.unseen": "relations"}, {"proto_evfl.share": "prototypes"}):
        assert notices(load_config("proto_evfl", keys | more), rows={}, slots={}) == ()
    assert notices(load_config("vfl_masked", keys), rows={}, slots={}) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.schedule", "cosine"), ("train.class_weight", "balanced"), ("eval.limit", 5)],
)
def test_what_tables_do_not_read_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match="means nothing to tables"):
        load_config("proto_evfl", {key: value})
