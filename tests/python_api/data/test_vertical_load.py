"""Joins, splits, overlap, imbalance, unseen classes: who holds what, and who never sees it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from python_api.config import load_config
from python_api.data.loaders import read_rows, write_rows
from python_api.data.vertical import VerticalData, load_vertical

from .vertical_kit import config, write_tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tables(tmp_path)
    return tmp_path


def ids(data: VerticalData, party: str, part: str) -> set[str]:
    return set(getattr(data.parties[party], part).ids)


def digits(**overrides: Any) -> VerticalData:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_vertical(load_config("proto_evfl", keys))


def test_tables_as_they_are(folder: Path) -> None:
    data = load_vertical(config(folder))
    assert data.labels == ("a", "b", "c") and data.unseen == ()
    assert data.counts == {
        "common": 60,
        "test": 12,
        "validation": 5,
        "aligned": 43,
        "bank": 63,
        "bank own": 20,
        "shop": 63,
        "shop own": 20,
    }
    assert len(ids(data, "bank", "train") & ids(data, "shop", "train")) == 43
    bank, shop = data.parties["bank"], data.parties["shop"]
    assert bank.active and not shop.active
    assert bank.train.x.dtype == torch.float32 and bank.train.x.shape == (63, 4)
    assert bank.train.y is not None and bank.train.y.dtype == torch.int64
    assert torch.equal(bank.truth, bank.train.y)


def test_test_ids_leave_every_party_first_and_validation_ids_next(folder: Path) -> None:
    data = load_vertical(config(folder, data={"overlap": 0.1, "imbalance": 4}))
    for part in ("test", "validation"):
        one, other = (getattr(p, part).ids for p in data.parties.values())
        assert one == other and len(one) > 0
    held = ids(data, "bank", "test"), ids(data, "bank", "validation")
    assert not held[0] & held[1]
    for name in data.parties:
        assert not ids(data, name, "train") & (held[0] | held[1])
    y = data.parties["bank"].test.y
    assert y is not None and y.bincount().tolist() == [4, 4, 4]


def test_the_order_of_rows_decides_nothing(folder: Path) -> None:
    keys = {"overlap": 0.2, "imbalance": 5.0}
    before = load_vertical(config(folder, data=keys))
    for name in ("bank", "shop"):
        rows = list(read_rows(folder / f"{name}.csv"))
        random.Random(name).shuffle(rows)
        write_rows(rows, folder / f"{name}.csv")
    after = load_vertical(config(folder, data=keys))
    assert any("another order" in note and "matched by id" in note for note in after.notes)
    for name, party in before.parties.items():
        other = after.parties[name]
        assert other.test.ids == party.test.ids and other.validation.ids == party.validation.ids
        assert set(other.train.ids) == set(party.train.ids)
        assert other.columns.parts == party.columns.parts
        torch.testing.assert_close(other.test.x, party.test.x)


def test_equal_seeds_give_equal_splits_and_others_do_not(folder: Path) -> None:
    one, same = (load_vertical(config(folder, seed=4)) for _ in range(2))
    assert one.parties["shop"].train.ids == same.parties["shop"].train.ids
    assert ids(one, "bank", "test") != ids(load_vertical(config(folder)), "bank", "test")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".tsv"])
def test_every_format_says_the_same(folder: Path, suffix: str) -> None:
    write_tables(folder, suffix=suffix)
    made = load_vertical(config(folder, suffix=suffix))
    csv = load_vertical(config(folder))
    for name, party in csv.parties.items():
        assert torch.equal(made.parties[name].train.x, party.train.x)
        assert made.parties[name].train.ids == party.train.ids


def test_columns_are_fitted_on_training_rows_of_the_own_party(folder: Path) -> None:
    before = load_vertical(config(folder))
    gone = ids(before, "bank", "test") | ids(before, "bank", "validation")
    for name, column in (("bank", "x"), ("shop", "u")):
        rows = list(read_rows(folder / f"{name}.csv"))
        for row in rows:
            if row["id"] in gone:
                row[column] = "1000"
        write_rows(rows, folder / f"{name}.csv")
    after = load_vertical(config(folder))
    for name, party in before.parties.items():
        assert torch.equal(after.parties[name].train.x, party.train.x)
        assert not torch.equal(after.parties[name].test.x, party.test.x)


def test_a_party_without_labels_holds_none_and_loses_a_column_called_like_them(
    folder: Path,
) -> None:
    rows = [row | {"y": row["kind"]} for row in read_rows(folder / "shop.csv")]
    write_rows([{k: v for k, v in row.items() if k != "kind"} for row in rows], folder / "shop.csv")
    data = load_vertical(config(folder, shop={"features": []}))
    shop = data.parties["shop"]
    assert shop.train.y is None and shop.test.y is None and shop.validation.y is None
    assert shop.columns.sources == ("u", "v")
    assert any(note.startswith("shop: column 'y' is called like the label") for note in data.notes)
    truth = dict(zip(shop.train.ids, shop.truth.tolist(), strict=True))
    bank = data.parties["bank"]
    both = set(truth) & set(bank.train.ids)
    assert {id for id, place in truth.items() if place >= 0} == both


def test_a_party_may_hold_labels_of_its_own(folder: Path) -> None:
    data = load_vertical(config(folder, shop={"features": [], "label": "kind"}))
    shop = data.parties["shop"]
    assert shop.train.y is not None and (shop.train.y >= 0).all()
    assert shop.columns.sources == ("u", "v")


def test_rows_without_a_label_train_and_are_said(folder: Path) -> None:
    rows = list(read_rows(folder / "bank.csv"))
    for row in rows[:7]:
        row["y"] = ""
    write_rows(rows, folder / "bank.csv")
    data = load_vertical(config(folder))
    bank = data.parties["bank"]
    assert bank.train.y is not None and int((bank.train.y == -1).sum()) == 7
    assert bank.test.y is not None and bool((bank.test.y >= 0).all())
    assert "bank: 7 rows have no label; training only" in data.notes


def test_overlap_keeps_a_share_aligned_and_deals_out_the_rest() -> None:
    data = digits(data__overlap=0.02, data__imbalance=1.0)
    left, right = (ids(data, name, "train") for name in ("left", "right"))
    assert data.counts["aligned"] == len(left & right) == round(0.02 * (1797 - 359 - 144))
    assert len(left | right) == 1797 - 359 - 144
    assert abs(len(left) - len(right)) <= 1
    truth = dict(zip(data.parties["left"].train.ids, data.parties["left"].truth, strict=True))
    assert len({int(truth[id]) for id in left & right}) == 10  # a row of every class


def test_imbalance_is_an_exponential_tail_in_each_partys_own_class_order() -> None:
    data = digits(data__overlap=0.1, data__imbalance=50.0)
    flat = digits(data__overlap=0.1, data__imbalance=1.0)
    aligned = ids(data, "left", "train") & ids(data, "right", "train")
    assert aligned == ids(flat, "left", "train") & ids(flat, "right", "train")
    orders = []
    for name in data.parties:
        counts: Counter[int] = Counter()
        full: Counter[int] = Counter()
        for found, of in ((counts, data), (full, flat)):
            own = of.parties[name]
            for id, place in zip(own.train.ids, own.truth.tolist(), strict=True):
                if id not in aligned:
                    found[place] += 1
        most = max(full.values())
        order = [place for place, _ in counts.most_common()]
        for rank, place in enumerate(order):
            wanted = most * 50 ** (-rank / 9)
            assert counts[place] <= full[place]
            assert abs(counts[place] - min(wanted, full[place])) <= 1.5
        orders.append(order)
    assert orders[0] != orders[1]


def test_an_unseen_class_leaves_the_active_party_and_stays_in_the_test(folder: Path) -> None:
    keys = {"features": [], "label": "kind"}
    data = load_vertical(config(folder, shop=keys, data={"unseen": ["b"]}))
    bank, shop = data.parties["bank"], data.parties["shop"]
    assert data.unseen == (1,)
    for split in (bank.train, bank.validation):
        assert split.y is not None and 1 not in split.y.tolist()
    for split in (bank.test, shop.train):
        assert split.y is not None and 1 in split.y.tolist()
    assert bank.validation.ids == shop.validation.ids


def test_built_in_tables_are_cut_into_views() -> None:
    four = [
        {"name": f"v{k}", "table": f"builtin:digits?views=4&view={k}", "id": "id"}
        | ({"active": True} if k == 1 else {})
        | {"model": {"kind": "cnn", "shape": [1, 4, 4]}}
        for k in (1, 2, 3, 4)
    ]
    data = load_vertical(
        load_config({"algorithm": "proto_evfl", "data": {"label": "digit"}, "party": four})
    )
    names = [name for party in data.parties.values() for name in party.columns.names]
    assert sorted(names) == [f"p{row}{column}" for row in range(8) for column in range(8)]
    assert data.parties["v2"].columns.names[:5] == ("p04", "p05", "p06", "p07", "p14")
    assert all(party.train.x.shape[1] == 16 for party in data.parties.values())
    for table, label, columns in (("breast_cancer", "diagnosis", 30), ("wine", "cultivar", 13)):
        two = [
            {"name": f"v{k}", "table": f"builtin:{table}?views=2&view={k}", "id": "id"}
            | ({"active": True} if k == 1 else {})
            for k in (1, 2)
        ]
        data = load_vertical(
            load_config({"algorithm": "proto_evfl", "data": {"label": label}, "party": two})
        )
        assert sum(len(party.columns.names) for party in data.parties.values()) == columns
        assert data.parties["v2"].train.y is None


def test_three_parties_of_whom_some_share_more(folder: Path) -> None:
    rows = list(read_rows(folder / "shop.csv"))[:30]
    write_rows([{"id": r["id"], "w": r["v"]} for r in rows], folder / "post.csv")
    post = {"name": "post", "table": f"{folder}/post.csv", "id": "id"}
    data = load_vertical(config(folder, more=[post]))
    assert data.counts["common"] == 30 and data.counts["test"] == 6
    # bank and shop still share what post lacks
    assert data.counts["aligned"] == 30 + 30 - 6 - data.counts["validation"]
    apart = load_vertical(config(folder, more=[post], data={"overlap": 0.2}))
    trains = [ids(apart, name, "train") for name in apart.parties]
    held = Counter(id for train in trains for id in train)
    assert set(held.values()) <= {1, 3}
    assert apart.counts["aligned"] == sum(count == 3 for count in held.values())
    # what bank and shop alone share is dealt out to both
    common = {row["id"] for row in rows}
    shared = {i for name in ("bank", "shop") for i in ids(data, name, "train")} - common
    both = shared.intersection(*(ids(data, name, "train") for name in ("bank", "shop")))
    hands = [len(both.intersection(ids(apart, name, "train"))) for name in ("bank", "shop")]
    assert len(both) == 30 and hands == [15, 15]


def test_one_party_alone_for_vfl_local_is_a_table_of_its_own(folder: Path) -> None:
    resolved = config(folder)
    alone = resolved.model_copy(update={"parties": resolved.parties[:1]})
    data = load_vertical(alone)
    assert data.counts["aligned"] == 0 and data.counts["bank own"] == data.counts["bank"] == 58
