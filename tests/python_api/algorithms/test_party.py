"""H2Tune's local training: the phases, what each of them moves, and the layer underneath."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_api.check import preflight
from python_api.errors import InputError

from .tiny import Federated, config, party


def snapshot(member: Any) -> dict[str, torch.Tensor]:
    shared = {f"middle.{n}": v.clone() for n, v in member.middle.state_dict().items()}
    return member.model.adapter_state() | shared


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def started(folder: Path, **h2tune: Any) -> Any:
    """A party in the middle of a run: one round done, the next G received."""
    run = Federated(config([party(folder, "a", rank=2)], h2tune=h2tune, rounds=4))
    server = run.algorithm._start(run.federation, run.recorder)
    run.federation.round = 1
    run.algorithm._download(run.federation, server)
    run.federation.call("train_locally", {"round": 1})
    run.algorithm._update(run.federation, server, run.federation.call("upload").ok)
    run.federation.round = 2
    run.algorithm._download(run.federation, server)
    return run.parties["a"]


def macro(member: Any) -> list:
    return next(iter(member.macro_batches(2)))


PRIVATE = ("A", "B", "weight", "bias")
SHARED = {"middle.delta", "middle.scores", "middle.relation.theta"}


def private(names: set[str]) -> set[str]:
    return {name for name in names if name.rpartition(".")[2] in PRIVATE}


@pytest.mark.parametrize("select", ["round", "every_step", "block"])
@pytest.mark.parametrize("norm", ["small", "literal"])
def test_phase_one_leaves_heads_and_factors_alone(tmp_path: Path, select: str, norm: str) -> None:
    member = started(tmp_path, select=select, norm=norm)
    before = snapshot(member)
    member._phase1(macro(member))
    changed = moved(before, snapshot(member))
    assert not private(changed)
    assert changed >= SHARED - ({"middle.scores"} if select == "block" else set())


@pytest.mark.parametrize("select", ["round", "every_step"])
def test_phase_two_leaves_the_middle_alone(tmp_path: Path, select: str) -> None:
    member = started(tmp_path, select=select)
    _, logits = member._phase1(macro(member))
    member.middle.gather()  # under "every_step" Omega follows the scores that phase 1 has moved
    before, T = snapshot(member), member.middle.gather().detach()
    member._phase2(macro(member), logits)
    changed = moved(before, snapshot(member))
    assert changed == private(set(before))
    assert torch.equal(member.middle.gather().detach(), T)
    assert torch.equal(member.model.middle, T)


def test_warm_up_moves_everything_in_one_pass(tmp_path: Path) -> None:
    run = Federated(config([party(tmp_path, "a")], train={"steps": 1}))
    server = run.algorithm._start(run.federation, run.recorder)
    run.federation.round = 1
    run.algorithm._download(run.federation, server)
    member = run.parties["a"]
    before = snapshot(member)
    # B = 0: the first step gives A no gradient yet, the second does
    member.config = member.config.model_copy(
        update={"train": member.config.train.model_copy(update={"steps": 2})}
    )
    reply = run.federation.call("train_locally", {"round": 1}).ok["a"]
    assert reply["passes"] == 2
    assert moved(before, snapshot(member)) >= private(set(before)) | SHARED


def test_each_phase_makes_its_own_forward_on_the_stepped_weights(tmp_path: Path) -> None:
    """Phase 2 must see what phase 1 has just done: its logits differ from phase 1's."""
    member = started(tmp_path)
    batches = macro(member)
    seen = []
    forward = member.model.logits
    member.model.logits = lambda batch: seen.append(forward(batch)) or seen[-1]
    _, old = member._phase1(batches)
    member._phase2(batches, old)
    assert len(seen) == 2
    assert torch.equal(seen[0], old[0])
    assert not torch.equal(seen[1], seen[0])


def test_one_selection_a_step_for_all_layers(tmp_path: Path, monkeypatch: Any) -> None:
    from python_api.algorithms.h2tune import middle as module

    member = started(tmp_path)
    calls = []
    select = module.select_middle
    monkeypatch.setattr(
        module, "select_middle", lambda m, *a, **k: calls.append(m.shape) or select(m, *a, **k)
    )
    _, logits = member._phase1(macro(member))
    member._phase2(macro(member), logits)
    assert calls == [(2, 7, 4, 4)] * 2


def test_micro_batches_add_up_to_the_macro_batch(tmp_path: Path) -> None:
    """Gradients of phase 1 over two micro-batches are those of one batch of all rows."""
    gradients = []
    for size, steps in ((4, 1), (2, 2)):
        member = started(tmp_path)
        keys = {"batch_size": size, "accumulate": steps}
        member.config = member.config.model_copy(
            update={"train": member.config.train.model_copy(update=keys)}
        )
        member.shared_optimizer.step = lambda: None
        member._phase1(macro(member))
        theta = member.middle.relation.theta.grad
        gradients.append([member.middle.delta.grad, member.middle.scores.grad, theta])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_delta_and_its_optimiser_are_empty_after_a_download(tmp_path: Path) -> None:
    member = started(tmp_path)
    assert torch.equal(member.middle.delta, torch.zeros_like(member.middle.delta))
    assert not member.shared_optimizer.adamw.adamw.state
    member._phase1(macro(member))
    assert member.shared_optimizer.adamw.adamw.state[member.middle.delta]
    assert member.optimizers["private"].adamw.state  # the private one lives on
    member.download({"shared": member.middle.shared.clone()})
    assert not member.shared_optimizer.adamw.adamw.state


def test_no_weight_decay_on_what_is_shared(tmp_path: Path) -> None:
    member = started(tmp_path)
    member.config = member.config.model_copy(
        update={"train": member.config.train.model_copy(update={"weight_decay": 0.5})}
    )
    member.download({"shared": member.middle.shared.clone()})
    optimizer = member.shared_optimizer
    assert [g["weight_decay"] for g in optimizer.adamw.adamw.param_groups] == [0.0]
    assert [g["weight_decay"] for g in optimizer.sgd.param_groups] == [0.0]


def test_a_zero_middle_is_plain_lora_and_a_zero_b_the_frozen_model(tmp_path: Path) -> None:
    member = started(tmp_path)
    model, batch = member.model.eval(), macro(member)[0]
    with torch.no_grad():
        model.set_middle(None)
        lora = model.hidden(batch)
        model.set_middle(torch.zeros(2, 7, 2, 2))
        torch.testing.assert_close(model.hidden(batch), lora)
        model.set_middle(torch.randn(2, 7, 2, 2))
        assert not torch.allclose(model.hidden(batch), lora)
        for layer in model.B:
            for B in layer.values():
                B.zero_()
        ids, mask = batch.input_ids, batch.attention_mask
        frozen = member.base.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(model.hidden(batch), frozen)


def test_merged_weights_give_the_adapter_path(tmp_path: Path) -> None:
    member = started(tmp_path)
    model, batch = member.model.eval(), macro(member)[0]
    T = torch.randn(2, 7, 2, 2)
    with torch.no_grad():
        model.set_middle(T)
        expected = model.logits(batch)
        for l in range(2):
            for m, slot in enumerate(model.slots):
                A, B = model.A[l][slot], model.B[l][slot]
                merged = model.scale * B @ (torch.eye(2) + T[l, m]) @ A
                model.slot_weight(l, slot).add_(merged)
                B.zero_()
        torch.testing.assert_close(model.logits(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("alternate", "passes"), [("step", 8), ("epoch", 4), ("joint", 4)])
def test_alternation(tmp_path: Path, alternate: str, passes: int) -> None:
    member = started(tmp_path, alternate=alternate)
    member.config = member.config.model_copy(
        update={"train": member.config.train.model_copy(update={"steps": 4})}
    )
    order = []
    for name in ("_joint", "_phase1", "_phase2"):
        run = getattr(member, name)
        setattr(member, name, lambda *a, n=name, r=run: order.append(n) or r(*a))
    assert member.train_locally({"round": 2})["passes"] == passes
    expected = {
        "step": ["_phase1", "_phase2"] * 4,
        "epoch": ["_phase1"] * 2 + ["_phase2"] * 2,
        "joint": ["_joint"] * 4,
    }
    assert order == expected[alternate]


def test_epoch_compares_with_the_model_before_phase_two(tmp_path: Path) -> None:
    member = started(tmp_path, alternate="epoch")
    batches = macro(member)
    before = member.model.adapter_state()
    expected = [member.model.logits(b).detach() for b in batches]
    with torch.no_grad():
        for parameter in member.private:
            parameter.add_(0.1)
    now = member.model.adapter_state()
    got = member._logits_of(before, batches)
    for one, two in zip(expected, got, strict=True):
        torch.testing.assert_close(one, two)
    assert not moved(now, member.model.adapter_state())


def test_state_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = started(tmp_path)
    one.train_locally({"round": 2})
    state = one.state()
    other = Federated(one.run).parties["a"]
    other.load_state(state)
    assert not moved(snapshot(one), snapshot(other))
    shared = one.middle.shared + 0.1
    for member in (one, other):
        member.download({"shared": shared})
        member.train_locally({"round": 3})
    assert not moved(snapshot(one), snapshot(other))


def test_epoch_gives_phase_one_the_larger_half(tmp_path: Path) -> None:
    member = started(tmp_path, alternate="epoch")
    update = {"train": member.config.train.model_copy(update={"steps": 3})}
    member.config = member.config.model_copy(update=update)
    order = []
    for name in ("_phase1", "_phase2"):
        run = getattr(member, name)
        setattr(member, name, lambda *a, n=name, r=run: order.append(n) or r(*a))
    member.train_locally({"round": 2})
    assert order == ["_phase1", "_phase1", "_phase2"]


def test_epoch_with_one_macro_batch_is_refused(tmp_path: Path) -> None:
    def made(**keys: Any) -> Any:
        return config([party(tmp_path, "a")], h2tune={"alternate": "epoch"}, **keys)

    with pytest.raises(InputError, match=r'party\.a: h2tune\.alternate = "epoch".* has 1;'):
        Federated(made(train={"steps": 1}))
    with pytest.raises(InputError, match=r'party\.a: h2tune\.alternate = "epoch"'):
        preflight(made(train={"steps": 1}))
    for keys in ({"train": {"steps": 2}}, {"train": {"steps": 1}, "rounds": 1}):
        Federated(made(**keys)).run()
