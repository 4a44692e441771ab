"""H2Tune over the bus: rounds, bytes, groups, controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_api.algorithms.h2tune.middle import PartyMiddle
from python_api.algorithms.h2tune.optimise import SharedOptimizer
from python_api.algorithms.h2tune.server import first_shared
from python_api.errors import InputError, RunFailed
from python_api.federation.seeds import generator
from python_api.models.slots import SLOTS

from .tiny import Federated, config, party, write_task

LLAMA = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2, "pretrain": "none"}
LITERAL = {
    "relation": "free",
    "select": "every_step",
    "norm": "literal",
    "upload": "transpose",
    "aggregate": "mean",
}


def mixed(folder: Path) -> list[dict]:
    """Two families, widths, depths, ranks, sets of slots and tasks."""
    small = party(folder, "small", rank=2, task=classes(folder, "small", 2))
    return [
        small | {"modules": ["q", "v", "up"]},
        party(
            folder,
            "large",
            rank=4,
            model={"kind": "gpt2", "hidden_size": 24, "layers": 3},
            task=classes(folder, "large", 3),
        ),
    ]


def classes(folder: Path, name: str, count: int) -> dict[str, Any]:
    path = write_task(folder, name, classes=count)
    return {
        "kind": "classification",
        "train": path,
        "test": 0.25,
        "text": "text",
        "label": "label",
    }


def same_base(folder: Path, *names: str, **h2tune: Any) -> Any:
    """Parties on one frozen base, with `basis = "svd"`."""
    parties = [party(folder, name, rank=4) | {"model": "shared"} for name in names or ("a", "b")]
    return config(parties, h2tune={"basis": "svd"} | h2tune, models={"shared": LLAMA}, rounds=2)


def test_two_different_parties_complete_rounds_and_hold_the_same_shared_tensor(
    tmp_path: Path,
) -> None:
    run = Federated(config(mixed(tmp_path))).run()
    G = run.recorder.states[1]["G"]
    assert G.shape == (3, 7, 4, 4)
    for name, slots in (("small", "q v up"), ("large", "q k v o up down")):
        own = [SLOTS.index(slot) for slot in slots.split()]
        assert run.recorder.states[1][f"slots/{name}"] == slots.split()
        assert torch.equal(run.parties[name].middle.shared, G[:, own])
    assert torch.equal(run.recorder.states[2]["G"][:, 4], G[:, 4])  # nobody has a gate
    assert not torch.equal(run.recorder.states[2]["G"][:, 0], G[:, 0])


def test_the_first_tensor_is_the_servers_one_draw(tmp_path: Path) -> None:
    run = Federated(config(mixed(tmp_path)))
    server = run.algorithm._start(run.federation, run.recorder)
    run.federation.round = 1
    run.algorithm._download(run.federation, server)
    G = first_shared(3, 4, generator=generator(3, 0, "server", "middle"))
    assert torch.equal(run.parties["small"].middle.shared, G[:, [0, 2, 5]])
    assert torch.equal(run.parties["large"].middle.shared, G[:, [0, 1, 2, 3, 5, 6]])


def test_bytes_are_exactly_those_of_the_formula(tmp_path: Path) -> None:
    run = Federated(config(mixed(tmp_path))).run()
    for name, slots, layers in (("small", 3, 2), ("large", 6, 3)):
        tensor = slots * 3 * 4**2 * 4
        extra = 4 * 3 * layers + slots * layers * 4**2 // 8
        for round in (1, 2):
            rows = [r for r in run.traffic.rows if (r["party"], r["round"]) == (name, round)]
            down = {r["op"]: r["bytes"] for r in rows if r["direction"] == "down"}
            up = {r["op"]: r["bytes"] for r in rows if r["direction"] == "up"}
            assert down == {"download": tensor, "train_locally": 0, "evaluate": 0, "upload": 0}
            assert up["upload"] == tensor + extra
            assert up["download"] == up["train_locally"] == 0


def test_nothing_private_is_declared(tmp_path: Path) -> None:
    manifest = Federated(config(mixed(tmp_path))).algorithm.manifest()
    up = {(op, name) for op, rule in manifest.ops.items() for name in rule.up}
    assert up == {
        ("describe", "slots"),
        ("train_locally", "loss"),
        ("train_locally", "passes"),
        ("evaluate", "names"),
        ("evaluate", "values"),
        ("upload", "shared"),
        ("upload", "relation"),
        ("upload", "omega"),
    }


def test_an_upload_with_nan_is_refused_and_named(tmp_path: Path) -> None:
    run = Federated(config(mixed(tmp_path)))
    upload = run.parties["large"].upload

    def broken(payload: dict) -> dict:
        sent = upload(payload)
        sent["shared"][0, 0, 0, 0] = float("nan")
        return sent

    run.parties["large"].upload = broken
    with pytest.raises(RunFailed, match=r"large.*NaN"):
        run.run()


def test_rows_come_in_the_order_of_the_rounds(tmp_path: Path) -> None:
    run = Federated(config(mixed(tmp_path), rounds=3, eval={"every": 2})).run()
    rows = [
        (r["round"], r["phase"])
        for r in run.recorder.rows
        if r["party"] == "small" and r["metric"] == "accuracy" and r["split"] == "test"
    ]
    assert rows == [(0, "local"), (2, "global"), (2, "local"), (3, "global"), (3, "local")]
    assert run.traffic.rows[-1]["op"] == "upload"


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    runs = [Federated(config(mixed(tmp_path), seed=seed)).run() for seed in (1, 1, 2)]
    G = [run.recorder.states[2]["G"] for run in runs]
    assert torch.equal(G[0], G[1])
    assert not torch.equal(G[0], G[2])


@pytest.mark.parametrize("alternate", ["step", "epoch", "joint"])
def test_the_literal_form_runs(tmp_path: Path, alternate: str) -> None:
    run = Federated(config(mixed(tmp_path), h2tune=LITERAL | {"alternate": alternate})).run()
    state = run.recorder.states[2]
    assert torch.isfinite(state["G"]).all()
    assert (state["P/large"] < 0).any()


def test_a_generating_decoder_and_a_classifying_encoder_share(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    lines = [f'{{"question": "{n}+1", "answer": "{n + 1}"}}' for n in range(8)]
    path.write_text("\n".join(lines) + "\n")
    task = {"kind": "generation", "train": str(path), "test": 0.25}
    task |= {"question": "question", "answer": "answer"}
    parties = [
        party(tmp_path, "sums", task=task),
        party(tmp_path, "words", rank=4, model={"kind": "bert", "hidden_size": 24}),
    ]
    run = Federated(config(parties, eval={"max_new_tokens": 3})).run()
    assert torch.isfinite(run.recorder.states[2]["G"]).all()
    for name in ("sums", "words"):
        assert 0 <= run.recorder.value(name, "accuracy", round=2, phase="local") <= 1
    assert run.parties["sums"].model.head is None


@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_one_slot_one_layer_federation_is_the_aggregate_of_its_uploads(
    tmp_path: Path, weight: str
) -> None:
    """With P = I, ridge 0 and full rank: G is the weighted mean of the trained middles."""
    keys = {"relation": "last", "ridge": 0.0, "weight": weight, "middle_rank": 2}
    parties = [
        party(tmp_path, "a", rank=2, model={"layers": 1}),
        party(
            tmp_path,
            "b",
            rank=2,
            model={"layers": 1},
            task=classes(tmp_path, "b", 2) | {"train": write_task(tmp_path, "b", rows=48)},
        ),
    ]
    run = Federated(config(parties, h2tune=keys, rounds=1)).run()
    middles = [run.parties[n].middle.middle().detach() for n in "ab"]
    rows = [len(run.parties[n].train) for n in "ab"]
    assert rows[1] > rows[0]
    share = rows[0] / sum(rows) if weight == "samples" else 0.5
    expected = share * middles[0] + (1 - share) * middles[1]
    torch.testing.assert_close(run.recorder.states[1]["G"], expected, rtol=1e-5, atol=1e-6)


def test_unshared_is_the_same_layer_trained_alone(tmp_path: Path) -> None:
    """share = false, P = I, mu = 0: the bus changes nothing beyond rounding."""
    keys = {"relation": "last", "ridge": 0.0, "share": False}
    parties = [party(tmp_path, "a"), party(tmp_path, "b", rank=4)]
    run = Federated(config(parties, h2tune=keys, rounds=3)).run()
    alone = Federated(config(parties, h2tune=keys, rounds=3))
    G = first_shared(2, 4, generator=generator(3, 0, "server", "middle"))
    for name, member in alone.parties.items():
        member.download({"shared": G})
        for round in (1, 2, 3):
            if round > 1:  # keep what was learnt, start DeltaM and its optimiser anew
                member.download({"shared": member.middle.middle().detach()})
            member.train_locally({"round": round})
        other = run.parties[name]
        for key, value in member.model.adapter_state().items():
            torch.testing.assert_close(
                other.model.adapter_state()[key], value, rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(
            other.middle.middle(), member.middle.middle(), rtol=1e-4, atol=1e-5
        )
        assert torch.equal(other.middle.index, member.middle.index)


def test_unshared_parties_do_not_touch_each_other(tmp_path: Path) -> None:
    both = Federated(config(mixed(tmp_path), h2tune={"share": False})).run()
    other = mixed(tmp_path)
    other[1]["lr"] = 5e-2
    changed = Federated(config(other, h2tune={"share": False})).run()
    mine = [run.recorder.states[2]["G/small"] for run in (both, changed)]
    theirs = [run.recorder.states[2]["G/large"] for run in (both, changed)]
    assert torch.equal(*mine)
    assert not torch.equal(*theirs)
    shared = [Federated(config(p)).run() for p in (mixed(tmp_path), other)]
    G = [run.recorder.states[2]["G"] for run in shared]
    assert not torch.equal(G[0][:, :3], G[1][:, :3])


def test_shuffled_gives_another_partys_numbers_out_of_place(tmp_path: Path) -> None:
    parties = [party(tmp_path, name) for name in ("a", "b", "c")]
    run = Federated(config(parties, h2tune={"share": "shuffled"})).run()
    sent = run.recorder.states[1]
    for name, donor in (("a", "b"), ("b", "c"), ("c", "a")):
        got, theirs = run.parties[name].middle.shared, sent[f"G/{donor}"]
        for layer in range(2):
            assert torch.equal(got[layer].flatten().sort()[0], theirs[layer].flatten().sort()[0])
        assert not torch.equal(got, theirs)


def identical(folder: Path, algorithm: str, names: str) -> tuple[float, float, dict]:
    """Parties with one start, data set and order: loss of "a" before and after, and its state."""
    parties = [party(folder, n, rank=4) | {"model": "shared"} for n in names]
    keys = {"relation": "last", "ridge": 0.0, "alternate": "joint"}
    models, train = {"shared": LLAMA}, {"steps": 8, "lr": 2e-3}
    run = Federated(config(parties, algorithm=algorithm, h2tune=keys, models=models, train=train))
    a = run.parties["a"]
    for other in run.parties.values():
        other.model.load_adapter_state(a.model.adapter_state())
        other.train, other.test = a.train, a.test
        other.macro_batches = a.macro_batches
        if algorithm == "h2tune":
            other._make_middle = lambda G, o=other: make_equal(o, G)
    run.run()
    losses = [run.recorder.value("a", "loss", round=t, phase="local") for t in (0, 2)]
    return losses[0], losses[1], a.model.adapter_state()


def make_equal(member: Any, G: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    member.middle = PartyMiddle(G, layers=2, rank=4, relation="last", generator=generator)


@pytest.mark.parametrize("algorithm", ["h2tune", "fedit"])
def test_two_identical_parties_move_like_one(tmp_path: Path, algorithm: str) -> None:
    _, both, state = identical(tmp_path, algorithm, "ab")
    _, one, alone = identical(tmp_path, algorithm, "a")
    assert both == pytest.approx(one, rel=1e-4)
    for name, value in state.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-5)


def test_without_heterogeneity_h2tune_is_fedit_up_to_the_middle(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Two identical parties: with T held at 0 the very same factors; with T trained, close by."""
    start, fedit, factors = identical(tmp_path, "fedit", "ab")
    _, h2tune, _ = identical(tmp_path, "h2tune", "ab")
    assert abs(h2tune - fedit) < abs(start - fedit)
    monkeypatch.setattr(SharedOptimizer, "step", lambda self: None)
    monkeypatch.setattr(
        "python_api.algorithms.h2tune.algorithm.first_shared",
        lambda *a, **k: torch.zeros(2, 7, 4, 4),
    )
    _, held, state = identical(tmp_path, "h2tune", "ab")
    assert held == pytest.approx(fedit, rel=1e-4)
    for name, value in factors.items():
        if not name.startswith("head"):
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


# ---- svd ---------------------------------------------------------------------------------------


def test_svd_shares_from_zero_with_a_frozen_basis_and_ends_on_the_aggregate(tmp_path: Path) -> None:
    run = Federated(same_base(tmp_path, relation="last"))
    before = {n: p.model.adapter_state() for n, p in run.parties.items()}
    run.run()
    a, b = run.parties["a"], run.parties["b"]
    for name, member in run.parties.items():
        after = member.model.adapter_state()
        frozen = [k for k in after if not k.startswith("head")]
        assert all(torch.equal(before[name][k], after[k]) for k in frozen)
        assert not torch.equal(before[name]["head.weight"], after["head.weight"])
        assert member.model.scale == 1.0
        assert member.model.residual is False
    G = run.recorder.states[2]["G"]
    assert torch.equal(a.middle.shared, G)
    assert torch.equal(b.middle.shared, G)
    assert torch.equal(a.model.middle, b.model.middle)
    rows = [(r["round"], r["phase"]) for r in run.recorder.rows if r["party"] == "a"]
    assert rows[-1] == (2, "global")
    assert run.traffic.rows[-1]["op"] == "evaluate"


def test_svd_starts_at_the_frozen_model(tmp_path: Path) -> None:
    run = Federated(same_base(tmp_path))
    server = run.algorithm._start(run.federation, run.recorder)
    run.federation.round = 1
    run.algorithm._download(run.federation, server)
    member = run.parties["a"]
    batch = next(iter(member.macro_batches(1)))[0]
    ids, mask = batch.input_ids, batch.attention_mask
    frozen = member.base.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(member.model.eval().hidden(batch), frozen)


def test_svd_groups_by_base(tmp_path: Path) -> None:
    parties = [party(tmp_path, name, rank=4) | {"model": "shared"} for name in ("a", "c")]
    parties.insert(1, party(tmp_path, "b", rank=4, model={"layers": 3}))
    run = Federated(config(parties, h2tune={"basis": "svd"}, models={"shared": LLAMA})).run()
    state = run.recorder.states[2]
    assert torch.equal(state["G/a"], state["G/c"])
    assert state["G/b"].shape[0] == 3
    assert torch.equal(run.parties["a"].middle.shared, run.parties["c"].middle.shared)


def test_svd_without_equal_bases_is_refused_unless_unshared(tmp_path: Path) -> None:
    parties = [party(tmp_path, "a", rank=4), party(tmp_path, "b", rank=4)]
    with pytest.raises(InputError, match="same frozen base"):
        Federated(config(parties, h2tune={"basis": "svd"}))
    run = Federated(config(parties, h2tune={"basis": "svd", "share": False})).run()
    assert set(run.recorder.states[2]) >= {"G/a", "G/b"}


def test_rotated_keeps_the_span_and_takes_away_the_coordinates(tmp_path: Path) -> None:
    plain, turned = Federated(same_base(tmp_path)), Federated(same_base(tmp_path, basis="rotated"))
    for name in ("a", "b"):
        A = plain.parties[name].model.A[0]["q"]
        Q = turned.parties[name].model.A[0]["q"]
        torch.testing.assert_close(Q.T @ Q, A.T @ A, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(Q, A, atol=1e-2)
    one, two = (turned.parties[n].model.A[0]["q"] for n in ("a", "b"))
    assert not torch.allclose(one, two, atol=1e-2)


# ---- bad input ---------------------------------------------------------------------------------


def test_free_relation_needs_the_mean(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="aggregate"):
        Federated(config(mixed(tmp_path), h2tune={"relation": "free", "aggregate": "counts"}))


def test_shuffled_needs_two_parties(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two parties"):
        Federated(config([party(tmp_path, "a")], h2tune={"share": "shuffled"}))


def test_rank_above_the_middle_rank(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rank.*8.*middle_rank"):
        Federated(config([party(tmp_path, "a", rank=8)]))
