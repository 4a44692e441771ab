"""Baselines: equal passes, what travels, what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_api.algorithms import ALGORITHMS, make
from python_api.algorithms.baselines.plain import sweeps, total_sweeps
from python_api.config import load_config
from python_api.config.settings import VERTICAL
from python_api.errors import InputError

from .tiny import Federated, config, party, write_task

LLAMA = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2, "pretrain": "none"}


def two(folder: Path) -> list[dict]:
    return [party(folder, "a"), party(folder, "b", rank=4, model={"hidden_size": 24, "layers": 3})]


def homogeneous(folder: Path) -> list[dict]:
    return [party(folder, name, rank=4) | {"model": "shared"} for name in ("a", "b")]


def count_backward(run: Federated) -> dict[str, int]:
    """Calls of `AdaptedModel.loss` in training, by party: one forward-backward pass each."""
    seen = dict.fromkeys(run.parties, 0)
    for name, member in run.parties.items():

        def loss(batch: Any, n: str = name, original: Any = member.model.loss) -> Any:
            if torch.is_grad_enabled():
                seen[n] += 1
            return original(batch)

        member.model.loss = loss
    run.run()
    return seen


@pytest.mark.parametrize("alternate", ["step", "epoch", "joint"])
def test_every_method_makes_the_same_number_of_passes(tmp_path: Path, alternate: str) -> None:
    counts = {}
    for algorithm in ("h2tune", "local", "centralised", "fedit"):
        keys: dict[str, Any] = {"h2tune": {"alternate": alternate}, "rounds": 3}
        run = Federated(
            config(homogeneous(tmp_path), algorithm=algorithm, models={"shared": LLAMA}, **keys)
        )
        counts[algorithm] = count_backward(run)
    assert len({tuple(seen.items()) for seen in counts.values()}) == 1
    assert counts["local"]["a"] == {"step": 10, "epoch": 6, "joint": 6}[alternate]


def test_sweeps() -> None:
    pass_by_round = {"step": [1, 2, 2], "joint": [1, 1, 1]}
    for alternate, expected in pass_by_round.items():
        run = type("Run", (), {"rounds": 3, "h2tune": type("H", (), {"alternate": alternate})})
        assert [sweeps(run, t) for t in (1, 2, 3)] == expected
        assert total_sweeps(run) == sum(expected)


def test_local_sends_metrics_only(tmp_path: Path) -> None:
    run = Federated(config(two(tmp_path), algorithm="local")).run()
    sent = {row["op"] for row in run.traffic.rows if row["bytes"]}
    assert sent == {"evaluate"}
    rows = [(r["round"], r["phase"]) for r in run.recorder.rows if r["metric"] == "accuracy"]
    assert sorted(set(rows)) == [(0, "local"), (1, "local"), (2, "local")]


def test_the_schedule_of_a_baseline_ends_with_its_last_step(tmp_path: Path) -> None:
    keys = {"train": {"schedule": "cosine"}, "rounds": 3}
    run = Federated(config(two(tmp_path), algorithm="local", **keys)).run()
    optimizer = run.parties["a"].optimizer
    assert optimizer.steps == optimizer.total == 10


def test_fedit_averages_both_factors_and_keeps_the_aggregate(tmp_path: Path) -> None:
    run = Federated(
        config(homogeneous(tmp_path), algorithm="fedit", models={"shared": LLAMA}, rounds=1)
    )
    sent = {}
    for name, member in run.parties.items():

        def upload(payload: dict, n: str = name, original: Any = member.upload) -> dict:
            sent[n] = original(payload)
            return sent[n]

        member.upload = upload
    run.run()
    a, b = run.parties["a"], run.parties["b"]
    mean = (sent["a"]["adapters"] + sent["b"]["adapters"]) / 2
    assert not torch.equal(sent["a"]["adapters"], sent["b"]["adapters"])
    torch.testing.assert_close(a.flat(), mean)
    assert torch.equal(a.flat(), b.flat())
    assert not torch.equal(a.model.head.weight, b.model.head.weight)
    rows = [(r["round"], r["phase"]) for r in run.recorder.rows if r["party"] == "a"]
    assert rows[-1] == (1, "global")


def test_fedit_parties_start_alike(tmp_path: Path) -> None:
    run = Federated(config(homogeneous(tmp_path), algorithm="fedit", models={"shared": LLAMA}))
    run.federation.call("download", {"adapters": run.algorithm.start})
    a, b = run.parties["a"], run.parties["b"]
    assert torch.equal(a.flat(), b.flat())
    assert a.flat().abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 2}, "rank is 2 where party.a has 4"),
        ({"alpha": 8}, "alpha is 8"),
        ({"modules": ["q", "v"]}, "modules is q v"),
        ({"model": LLAMA | {"layers": 3}}, "number of layers is 3"),
        ({"model": LLAMA}, "frozen base"),
    ],
)
def test_fedit_names_what_differs(tmp_path: Path, change: dict, named: str) -> None:
    parties = homogeneous(tmp_path)
    parties[1] |= change
    with pytest.raises(InputError, match=f"party.b: .*{named}"):
        Federated(config(parties, algorithm="fedit", models={"shared": LLAMA}))


def test_centralised_is_one_adapter_of_the_largest_model_and_a_head_each(tmp_path: Path) -> None:
    parties = two(tmp_path)
    task = parties[0]["task"] | {"train": write_task(tmp_path, "a", classes=4)}
    parties[0]["task"] = task
    run = Federated(config(parties, algorithm="centralised")).run()
    a, b = run.parties["a"], run.parties["b"]
    assert a.base is b.base
    assert a.model.rank == b.model.rank == 4
    assert a.model.n_layers == 3
    own = list(a.model.adapter_parameters()), list(b.model.adapter_parameters())
    for mine, theirs in zip(*own, strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    assert any(B.abs().sum() > 0 for layer in b.model.B for B in layer.values())
    assert a.model.head.weight.shape == (4, 24)
    assert b.model.head.weight.shape == (2, 24)
    assert {row["party"] for row in run.recorder.rows} == {"a", "b"}
    assert {row["op"] for row in run.traffic.rows} == {"evaluate"}


def test_a_step_of_one_party_leaves_the_other_head_alone(tmp_path: Path) -> None:
    run = Federated(config(two(tmp_path), algorithm="centralised"))
    a, b = run.parties["a"], run.parties["b"]
    before = a.model.head.weight.clone(), b.model.head.weight.clone()
    from python_api.algorithms.baselines.plain import accumulate

    accumulate(a, next(iter(a.macro_batches(1))))
    run.algorithm._step(a)
    assert not torch.equal(a.model.head.weight, before[0])
    assert torch.equal(b.model.head.weight, before[1])
    assert any(B.abs().sum() > 0 for layer in b.model.B for B in layer.values())


def test_unknown_algorithm_is_named() -> None:
    with pytest.raises(InputError, match="'fedavg' is not known; expected one of h2tune"):
        make(type("Config", (), {"algorithm": "fedavg"}))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_registry_holds_what_it_names(name: str, tmp_path: Path) -> None:
    if name in VERTICAL:
        resolved = load_config(name)
    else:
        resolved = config(homogeneous(tmp_path), algorithm=name, models={"shared": LLAMA})
    assert make(resolved).name == name
