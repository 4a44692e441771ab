"""The baselines on tables: what each learns from, and what it sends."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from python_api.algorithms import make
from python_api.algorithms.baselines.vertical.centralised import pool
from python_api.algorithms.baselines.vertical.fedcvt import attend
from python_api.algorithms.vertical.active import Stream
from python_api.algorithms.vertical.load import load_vertical_party
from python_api.config import ignored
from python_api.data.vertical import Split
from python_api.errors import InputError
from python_api.run.runner import run_algorithm

from .kit import PARTIES, Federated, config

BASELINES = (
    "centralised",
    "vfl_local",
    "vfl_vanilla",
    "vfl_balanced",
    "vfl_masked",
    "fixmatch_lite",
    "fedcvt_lite",
)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_runs_and_takes_as_many_steps(name: str, tmp_path: Path) -> None:
    run = Federated(config(tmp_path, name)).run()
    assert run.algorithm.name == name
    assert 0 <= run.value("balanced_accuracy") <= 1
    # 6 steps a round are one cycle of 1 lower and 5 upper steps, in every algorithm
    assert run.algorithm.server.passes == 12
    parties = {row["party"] for row in run.recorder.rows}
    alone = name in ("centralised", "vfl_local")
    assert parties == ({PARTIES[0]} if alone else set(PARTIES))
    assert (len(run.traffic.rows) == 0) == alone
    assert {2, 1} == set(run.recorder.states)


def test_the_active_party_alone_needs_no_other(tmp_path: Path) -> None:
    run = Federated(config(tmp_path, "vfl_local", parties=PARTIES[:1], data={"overlap": 1.0})).run()
    assert run.algorithm.server.passes == 12 and not run.traffic.rows


def test_who_took_no_part_decides_nothing(tmp_path: Path) -> None:
    given = config(tmp_path, "vfl_local", rounds=1)
    out = tmp_path / "alone"
    run_algorithm(make(given), given, out, report=False)
    table = rows(given.parties[0].table)
    assert {row["present"] for row in load_vertical_party(out, "bank").predict(table)} == {"bank"}
    with pytest.raises(InputError, match="shop took no part in vfl_local; expected one of bank"):
        load_vertical_party(out, "shop")


def rows(table: str) -> list[dict[str, str]]:
    with Path(table).open(newline="") as file:
        return list(csv.DictReader(file))


def test_aligned_rows_only(tmp_path: Path) -> None:
    run = Federated(config(tmp_path, "vfl_vanilla")).run()
    algorithm = run.algorithm
    aligned = algorithm.server.aligned()
    assert 0 < int(aligned.sum()) < len(aligned)
    for _ in range(5):
        batch = algorithm.batch()
        assert bool(aligned[batch.rows].all()) and bool(batch.aligned.all())
        assert len(batch.rows) == min(8, int(aligned.sum()))
    ops = {row["op"] for row in run.traffic.rows}
    assert ops == {"match", "embed", "backward", "evaluate", "keep"}


def test_balanced_weights_are_those_of_aligned_rows(tmp_path: Path) -> None:
    algorithm = Federated(config(tmp_path, "vfl_balanced")).run().algorithm
    y = algorithm.server.y["train"][algorithm.server.aligned()]
    weight = algorithm.class_weight()
    torch.testing.assert_close(weight, len(y) / (3 * torch.bincount(y, minlength=3)))


@pytest.mark.parametrize("adjust", [False, True])
def test_priors_travel_only_where_they_are_used(adjust: bool, tmp_path: Path) -> None:
    run = Federated(config(tmp_path, "vfl_masked", keys={"adjust": adjust})).run()
    ops = {row["op"] for row in run.traffic.rows}
    assert ("share" in ops) == ("begin" in ops) == adjust
    assert {r["party"] for r in run.traffic.rows if r["op"] == "lower"} == {"shop"}
    assert run.algorithm.keys.prior == ("mixed" if adjust else "none")
    assert not any(key.startswith("selected") for key in run.recorder.states[2])
    assert any(key.startswith("prior/") for key in run.recorder.states[2]) == adjust


def test_keys_of_the_method_do_not_reach_a_baseline(tmp_path: Path) -> None:
    keys = {"lam": 0.9, "tau": 0.2, "preset": "literal", "l_ct": 3.0, "gradients": "noise"}
    given = config(tmp_path, "vfl_masked", keys=keys, party={"shop": {"l_ct": 2.0}})
    read = Federated(given).algorithm
    assert (read.keys.lam, read.keys.tau, read.keys.l_ct) == (0.5, 0.2, 0.0)
    assert (read.keys.gradients, read.keys.rows, read.keys.local) == ("exact", "masked", "none")
    assert read.keys.lower == 5 and all(party.l_ct is None for party in read.config.parties)
    assert "lam" in str(ignored(given))


def test_an_unlabelled_party_is_sent_the_head_and_returns_no_gradient(tmp_path: Path) -> None:
    replies: dict[str, list[dict]] = {}

    def listen(algorithm) -> None:
        for member in algorithm.members:

            def lower(payload: dict, name=member.name, original=member.lower) -> dict:
                assert payload["head"].shape == (3, 5)
                reply = original(payload)
                replies.setdefault(name, []).append(reply)
                return reply

            member.lower = lower

    run = Federated(config(tmp_path, "fixmatch_lite"), change=listen)
    before = [p.clone() for p in run.members["spa"].encoder.parameters()]
    run.algorithm.upper_step = lambda: 0.0
    run.run()
    assert all(set(reply) == {"loss", "grad"} for reply in replies["shop"])
    assert all(set(reply) == {"loss"} for reply in replies["spa"])
    after = run.members["spa"].encoder.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_attention_over_aligned_rows() -> None:
    torch.manual_seed(0)
    key, value = torch.randn(5, 4), torch.randn(5, 2)
    found = attend(1e4 * key, key / key.norm(dim=1, keepdim=True), value)
    torch.testing.assert_close(found, value)  # each row finds itself
    apart = attend(key, key, value, others=True)
    assert not torch.allclose(apart, attend(key, key, value))
    changed = value.clone()
    changed[2] += 1
    assert torch.equal(attend(key, key, changed, others=True)[2], apart[2])


def test_rows_of_all_tables_are_joined_by_id() -> None:
    first = Split(("a", "b"), torch.ones(2, 2), torch.tensor([0, -1]))
    second = Split(("b", "c"), 2 * torch.ones(2, 3), torch.tensor([1, 2]))
    third = Split(("c",), 3 * torch.ones(1, 1), None)
    ids, x, present, y = pool([first, second, third])
    assert ids == ("a", "b", "c") and y.tolist() == [0, 1, 2]
    assert present.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert x[1].tolist() == [[1, 1, 0], [2, 2, 2], [0, 0, 0]] and x[0, 1].sum() == 0


def test_one_place_learns_from_labels_of_every_party(tmp_path: Path) -> None:
    algorithm = Federated(config(tmp_path, "centralised")).algorithm
    server, parties = algorithm.server, algorithm.data.parties
    both = set(parties["bank"].train.ids) | set(parties["shop"].train.ids)
    assert int((server.y["train"] >= 0).sum()) == len(both)
    assert server.fusion.rest[0].in_features == 3 * 3 + 3  # columns and presence bits
    assert server.fusion.rest[0].out_features == 3 * 8  # three encoders of width 8


def test_a_class_hidden_from_the_active_party(tmp_path: Path) -> None:
    for name in ("centralised", "vfl_masked"):
        run = Federated(config(tmp_path, name, data={"unseen": ["cat"]})).run()
        assert run.value("unseen_accuracy") >= 0
        hidden = run.algorithm.data.parties["bank"].train.y == 2
        assert not bool(hidden.any())


def test_a_stream_may_be_asked_for_nothing() -> None:
    stream = Stream(torch.arange(4), seed=0, party="a", purpose="b")
    assert stream.take(0).tolist() == []
    assert sorted(stream.take(4).tolist()) == [0, 1, 2, 3]
