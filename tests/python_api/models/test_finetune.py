"""The fine-tuning party: batches, optimiser, metrics, predictions, what is kept and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from python_api.algorithms.finetune import FineTuneParty, metric_rows
from python_api.algorithms.parties import load_party, make_parties
from python_api.config import dump_config, load_config
from python_api.errors import InputError
from python_api.models.optimise import LocalOptimizer, learning_rate_factor

MODEL = {"kind": "llama", "hidden_size": 32, "layers": 2, "heads": 4, "pretrain": {"text": "none"}}
COLOURS = ("red", "blue", "green")


def rows_of(folder, n=60):
    lines = [
        {"text": f"{COLOURS[i % 3]} thing number {i // 3}", "label": COLOURS[i % 3]}
        for i in range(n)
    ]
    path = folder / "colours.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def sums_of(folder, n=30):
    lines = [{"q": f"{i % 5}+{i % 3}=", "a": str(i % 5 + i % 3)} for i in range(n)]
    path = folder / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def config(folder, *, party=None, train=None, generation=False, model=None, **keys):
    if generation:
        task = {"kind": "generation", "train": sums_of(folder), "question": "q", "answer": "a"}
    else:
        task = {"train": rows_of(folder), "text": "text", "label": "label"}
    one = {"name": "one", "rank": 4, "model": MODEL | (model or {}), "task": task} | (party or {})
    source = {
        "algorithm": "local",
        "rounds": 3,
        "device": "cpu",
        "train": {"batch_size": 8, "max_length": 32} | (train or {}),
        "eval": {"max_new_tokens": 4},
        "party": [one],
    }
    return load_config(source | keys)


def build(folder, **keys) -> FineTuneParty:
    return make_parties(config(folder, **keys))[0]


def learn(party, rounds=1, *, optimizer=None):
    optimizer = optimizer or party.make_optimizer("private", party.groups())
    party.model.train()
    for round in range(1, rounds + 1):
        for macro in party.macro_batches(round):
            for share, batch in zip(party.shares(macro), macro, strict=True):
                loss, _ = party.model.loss(batch)
                (share * loss).backward()
            optimizer.step()
    return optimizer


def test_macro_batches_are_deterministic_and_cover_an_epoch(tmp_path):
    party = build(tmp_path, train={"batch_size": 4, "accumulate": 3})
    again = build(tmp_path, train={"batch_size": 4, "accumulate": 3})
    n = len(party.train)
    first = list(party.macro_batches(1))
    assert len(first) == party.steps_per_round == -(-n // 12)
    assert sum(len(batch) for macro in first for batch in macro) == n
    assert max(len(macro) for macro in first) == 3
    for ours, theirs in zip(first, again.macro_batches(1), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)
    other = list(party.macro_batches(2))
    assert not all(torch.equal(a[0].labels, b[0].labels) for a, b in zip(first, other, strict=True))
    stepped = build(tmp_path, train={"steps": 9, "batch_size": 16})
    assert len(list(stepped.macro_batches(1))) == 9


def test_shares_make_the_mean_over_the_macro_batch(tmp_path):
    party = build(tmp_path, train={"batch_size": 5, "accumulate": 3})
    macro = list(party.macro_batches(1))[-1]
    whole = torch.cat([party.model.logits(b) for b in macro])
    labels = torch.cat([b.labels for b in macro])
    want = torch.nn.functional.cross_entropy(whole, labels)
    found = sum(
        share * party.model.loss(b)[0] for share, b in zip(party.shares(macro), macro, strict=True)
    )
    torch.testing.assert_close(found, want)


def test_training_lowers_the_loss_and_metrics_are_complete(tmp_path):
    party = build(tmp_path)
    before = {(s, m): v for s, m, v in metric_rows(party.evaluate({}))}
    learn(party, 3)
    after = {(s, m): v for s, m, v in metric_rows(party.evaluate({}))}
    names = {"accuracy", "loss", "balanced_accuracy", "macro_f1"}
    assert {m for s, m in before if s == "test"} == names
    assert {s for s, _ in before} == {"test", "validation"}
    assert after["test", "loss"] < before["test", "loss"]


def test_evaluation_does_not_depend_on_the_batch_size_and_obeys_the_limit(tmp_path):
    rows = [
        metric_rows(build(tmp_path, eval={"batch_size": size}).evaluate({})) for size in (1, 32)
    ]
    for a, b in zip(*rows, strict=True):
        assert a[:2] == b[:2] and a[2] == pytest.approx(b[2], abs=1e-5)
    party = build(tmp_path, eval={"limit": 3})
    values = {m: v for s, m, v in metric_rows(party.evaluate({})) if s == "test"}
    assert values["accuracy"] * 3 == pytest.approx(round(values["accuracy"] * 3))


def test_generation_is_evaluated_by_exact_match(tmp_path, monkeypatch):
    party = build(tmp_path, generation=True)
    values = {m: v for s, m, v in metric_rows(party.evaluate({})) if s == "test"}
    assert set(values) == {"accuracy", "loss"} and values["loss"] > 0
    answers = iter([example.answer + ".0" for example in party.test.examples])
    monkeypatch.setattr(
        party, "_answers", lambda examples: [next(answers) for _ in party.test.examples]
    )
    assert party._measure("test", party.test)["test/accuracy"] == 1.0  # "4.0" is 4
    learn(party)
    assert metric_rows({"names": ["test/x"], "values": torch.tensor([1.0])}) == [("test", "x", 1.0)]


def test_predictions(tmp_path):
    party = build(tmp_path)
    rows = [{"text": "red thing", "id": "7"}, {"text": "blue", "id": "8"}]
    found = party.predict(rows)
    for row, given in zip(found, rows, strict=True):
        assert row["text"] == given["text"] and row["id"] == given["id"]
        chances = [row[f"p_{label}"] for label in party.labels]
        assert sum(chances) == pytest.approx(1) and row["prediction"] in COLOURS
        assert row[f"p_{row['prediction']}"] == max(chances)
    with pytest.raises(InputError, match="row 2: no column 'text'; found words"):
        party.predict([rows[0], {"words": "x"}])
    spoken = build(tmp_path, generation=True)
    [row] = spoken.predict([{"q": "1+1="}])
    assert set(row) == {"q", "prediction", "answer"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_save_and_load(kind, tmp_path):
    run = config(tmp_path, model={"kind": kind})
    party = make_parties(run)[0]
    T = torch.randn(2, len(party.model.slots), 4, 4) * 0.2
    party.model.set_middle(T)
    learn(party)
    folder = tmp_path / "run"
    (folder / "models" / "one").mkdir(parents=True)
    (folder / "config.toml").write_text(dump_config(run))
    party.save(folder / "models" / "one")
    names = {p.name for p in (folder / "models" / "one").iterdir()}
    assert names == {"native", "peft", "base"}
    stamp = (folder / "models" / "one" / "base" / "config.json").stat().st_mtime_ns
    party.save(folder / "models" / "one")  # the base stands once
    assert (folder / "models" / "one" / "base" / "config.json").stat().st_mtime_ns == stamp
    rows = [{"text": "red thing"}, {"text": "a blue one that is long"}]
    loaded = load_party(folder, "one")
    for a, b in zip(party.predict(rows), loaded.predict(rows), strict=True):
        for label in party.labels:
            assert a[f"p_{label}"] == pytest.approx(b[f"p_{label}"], abs=1e-6)
    with pytest.raises(InputError, match="no party 'two'; expected one of one"):
        load_party(folder, "two")
    with pytest.raises(InputError, match=r"no config\.toml"):
        load_party(tmp_path / "nowhere", "one")


def test_all_weights_can_train_and_come_back(tmp_path):
    run = config(tmp_path, train={"adapters": False, "lr": 1e-3})
    party = make_parties(run)[0]
    learn(party)
    folder = tmp_path / "run"
    (folder / "models" / "one").mkdir(parents=True)
    (folder / "config.toml").write_text(dump_config(run))
    party.save(folder / "models" / "one")
    rows = [{"text": "red thing"}]
    assert load_party(folder, "one").predict(rows)[0] == pytest.approx(party.predict(rows)[0])


def test_best_is_kept_by_validation(tmp_path):
    party = build(tmp_path, train={"keep": "best"})
    learn(party, 2)
    good = party.evaluate({})
    best = party.model.adapter_state()
    with torch.no_grad():
        party.model.head.weight.mul_(-1)
        party.model.head.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    later = {(s, m): v for s, m, v in metric_rows(party.evaluate({}))}
    first = {(s, m): v for s, m, v in metric_rows(good)}
    assert later["validation", "loss"] > first["validation", "loss"]
    assert later["test", "loss"] == first["test", "loss"]  # of the model that is kept
    now = party.model.adapter_state()
    party.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "native" / "adapter.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in best.items())
    after = party.model.adapter_state()
    assert all(torch.equal(after[name], value) for name, value in now.items())


def test_state_goes_round_and_training_continues_bit_for_bit(tmp_path):
    def fresh():
        party = build(tmp_path, train={"schedule": "cosine", "warmup": 2})
        return party, party.make_optimizer("private", party.groups())

    straight, optimizer = fresh()
    learn(straight, 1, optimizer=optimizer)
    state = straight.state()
    state["adapters"] = {k: v.clone() for k, v in state["adapters"].items()}
    learn(straight, 1, optimizer=optimizer)
    resumed, optimizer = fresh()
    resumed.load_state(state)
    learn(resumed, 1, optimizer=optimizer)
    ours = resumed.model.adapter_state()
    assert all(torch.equal(ours[n], v) for n, v in straight.model.adapter_state().items())


def test_one_base_is_shared_in_memory(tmp_path):
    shared = {"kind": "llama", "hidden_size": 32, "layers": 2, "heads": 4}
    shared["pretrain"] = {"text": "none"}
    task = {"train": rows_of(tmp_path), "text": "text", "label": "label"}
    parties = [{"name": n, "rank": 2, "model": "big", "task": task} for n in ("a", "b")]
    run = load_config(
        {"algorithm": "local", "device": "cpu", "models": {"big": shared}, "party": parties}
    )
    a, b = make_parties(run)
    assert a.base is b.base and a.base.hash == b.base.hash
    mine = {p.data_ptr() for p in a.model.model.parameters()}
    assert mine == {p.data_ptr() for p in b.model.model.parameters()}
    assert not torch.equal(a.model.A[0]["q"], b.model.A[0]["q"])


def test_an_encoder_is_refused_for_generation(tmp_path):
    run = config(tmp_path, generation=True)
    party = run.parties[0]
    bert = party.model.model_copy(update={"kind": "bert"})
    run = run.model_copy(update={"parties": (party.model_copy(update={"model": bert}),)})
    with pytest.raises(InputError, match=r"party\.one\.task\.kind: bert is an encoder"):
        make_parties(run)


def test_balanced_class_weights(tmp_path):
    party = build(tmp_path, train={"class_weight": "balanced"})
    labels = torch.tensor([e.label for e in party.train.examples])
    counts = torch.bincount(labels)
    torch.testing.assert_close(party.model.class_weight, len(labels) / (3 * counts.float()))
    assert build(tmp_path).model.class_weight is None


def test_learning_rate_factor():
    options = {"schedule": "cosine", "warmup": 4, "total": 12}
    factors = [learning_rate_factor(s, **options) for s in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5) and factors[12] == pytest.approx(0)
    assert learning_rate_factor(99, schedule="constant", warmup=0, total=1) == 1.0


def test_optimizer_clips_over_all_groups_and_takes_rates_per_group():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = LocalOptimizer([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}], clip=1.0)
    a.grad, b.grad = torch.tensor([30.0]), torch.tensor([40.0])
    seen = []
    real = optimizer.adamw.step
    optimizer.adamw.step = lambda: (seen.extend([float(a.grad), float(b.grad)]), real())
    optimizer.step()
    assert seen == pytest.approx([0.6, 0.8], rel=1e-4)
    assert float(a.detach()) == pytest.approx(-0.1, rel=1e-3)
    assert float(b.detach()) == pytest.approx(-0.01, rel=1e-3)
    assert optimizer.steps == 1 and a.grad is None
    LocalOptimizer([{"params": [], "lr": 1.0}]).step()  # nothing to move is no error
