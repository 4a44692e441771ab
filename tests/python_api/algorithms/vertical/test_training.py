"""Whole runs on tiny tables: gradients over the bus, determinism, and every switch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from python_api.algorithms.proto_evfl.own import OwnTerms, own_loss
from python_api.algorithms.vertical.local_head import local_head
from python_api.config import ProtoEvflConfig
from python_api.errors import InputError, RunFailed
from python_api.federation.bus import Replies

from .kit import PARTIES, Federated, config


def in_double(run: Federated) -> None:
    """Everything in float64, calls without a wire, and gradients kept in place of steps."""
    algorithm = run.algorithm
    algorithm.there = algorithm._attendance(run.federation)
    algorithm.match()
    algorithm.begin_run()
    for member in (algorithm.server, *algorithm.members):
        for module in member.own_modules():
            module.double()
        member.splits = {k: replace(v, x=v.x.double()) for k, v in member.splits.items()}
        member.noise = 0.0
        member.optimizer.step = lambda: None

    def call(op: str, payloads: Any) -> Replies:
        return Replies(
            {name: getattr(run.members[name], op)(sent) for name, sent in payloads.items()}
        )

    algorithm.call = call


@pytest.mark.parametrize("keys", [{}, {"head": "prototype"}, {"rows": "aligned"}, {"gate": False}])
def test_a_gradient_over_the_bus_is_that_of_one_graph(keys: dict, tmp_path: Path) -> None:
    run = Federated(config(tmp_path, keys=keys))
    in_double(run)
    algorithm, server = run.algorithm, run.algorithm.server
    if server.fusion.gate is not None:
        torch.nn.init.normal_(server.fusion.gate.out)
    batch = algorithm.batch()
    algorithm.batch = lambda: batch
    everyone = [server, *algorithm.members]
    start = {k: v.clone() for k, v in server.fusion.state_dict().items()}

    def zero() -> None:
        for member in everyone:
            for module in member.own_modules():
                module.zero_grad()

    torch.manual_seed(0)
    zero()
    algorithm.upper_step()
    over_the_bus = [[p.grad.clone() for p in member.encoder.parameters()] for member in everyone]

    zero()
    server.fusion.load_state_dict(start)  # running class means have moved
    h = torch.zeros(len(batch.rows), len(PARTIES), server.width, dtype=torch.float64)
    columns = list(h.unbind(1))
    columns[algorithm.place[server.name]] = server.encode(server.splits["train"].x[batch.rows])
    for member in algorithm.members:
        m = algorithm.place[member.name]
        at = batch.present[:, m].nonzero()[:, 0]
        asked = algorithm.asked["train"][batch.rows[at]]
        own = member.encode(member._take("train", asked))
        columns[m] = columns[m].index_copy(0, at, own)
    torch.manual_seed(0)
    algorithm.upper_loss(torch.stack(columns, 1), batch.present, batch).backward()
    one_graph = [[p.grad for p in member.encoder.parameters()] for member in everyone]
    assert any(float(g.abs().max()) > 1e-3 for g in one_graph[1])
    for mine, wanted in zip(over_the_bus, one_graph, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-9)


def test_the_visiting_heads_gradient_is_that_of_one_graph(tmp_path: Path) -> None:
    """A party with labels returns dCE/d(head); the rest of the chain is the server's."""
    run = Federated(config(tmp_path, "vfl_masked"))
    in_double(run)
    head, shop = run.algorithm.server.fusion.head, run.members["shop"]
    own = shop.own_rows
    rows = torch.arange(len(own.x))
    own.x = own.x.double()
    own.stream.take = lambda count: rows
    visiting = head.visiting(1)
    reply = shop.lower({"head": visiting.detach()})
    visiting.backward(reply["grad"])
    found = [head.weight[1].grad.clone(), head.bias.grad.clone(), head.present.grad.clone()]
    head.zero_grad()
    h = torch.zeros(len(rows), 3, 4, dtype=torch.float64)
    h[:, 1] = shop.encode(own.x).detach()
    present = torch.tensor([False, True, False]).expand(len(rows), 3)
    logits = run.algorithm.server.fusion.logits(h, present)
    torch.nn.functional.cross_entropy(logits, own.y).backward()
    for mine, wanted in zip(found, [head.weight[1], head.bias, head.present], strict=True):
        torch.testing.assert_close(mine, wanted.grad, rtol=0, atol=1e-9)


def bits(run: Federated) -> list[object]:
    members = (run.algorithm.server, *run.algorithm.members)
    return [member._parameters() for member in members]


@pytest.mark.parametrize("name", ["proto_evfl", "fixmatch_lite", "centralised"])
def test_same_seed_same_bits(name: str, tmp_path: Path) -> None:
    first, again = (Federated(config(tmp_path, name, rounds=1)).run() for _ in range(2))
    assert first.recorder.rows == again.recorder.rows
    for one, two in zip(bits(first), bits(again), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    if name == "proto_evfl":
        other = Federated(config(tmp_path, name, rounds=1, seed=4)).run()
        assert other.recorder.rows != first.recorder.rows


def test_a_loss_that_is_no_number_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    run = Federated(config(tmp_path))

    def change(h: torch.Tensor, *_: Any) -> torch.Tensor:
        return h.sum() * torch.inf

    run.algorithm.upper_loss = change
    with pytest.raises(RunFailed, match="round 1: the loss is"):
        run.run()
    assert "backward" not in {row["op"] for row in run.traffic.rows}


def test_a_party_without_a_label_column_runs(tmp_path: Path) -> None:
    given = config(tmp_path, labelled=())
    for name in PARTIES[1:]:
        path = tmp_path / f"{name}.csv"
        lines = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    run = Federated(given).run()
    assert run.value("accuracy") >= 0
    assert not [row for row in run.traffic.rows if row["op"] == "lower"]


def test_classes_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'dog'"):
        Federated(config(tmp_path, data={"labels": ["ant", "bee", "cat", "dog"]}))
    with pytest.raises(InputError, match="cat"):
        Federated(config(tmp_path, labelled=(), data={"unseen": ["cat"]}))


@pytest.mark.parametrize("rule", ["vote", "prototypes", "relations"])
def test_a_class_taken_from_the_active_party(rule: str, tmp_path: Path) -> None:
    """Accuracies are printed, not asserted: `pytest -s` shows them."""
    given = config(
        tmp_path, rows=90, data={"unseen": ["cat"]}, keys={"unseen": rule, "lower": 2, "upper": 4}
    )
    run = Federated(given).run()
    told = {m: run.value(m) for m in ("seen_accuracy", "unseen_accuracy")}
    print(f"\nunseen = {rule}: {told}")
    fusion = run.algorithm.server.fusion
    assert bool(fusion.votes) and fusion.known[:, 2].tolist() == [False, True, False]
    if rule == "relations":
        # relations off: nothing ties the class to one that the party knows
        h, present = run.algorithm.represent("test")
        present = present.clone()
        present[:, 1] = False  # the party that has a prototype of it
        fusion.eval()
        fusion.relation.copy_(torch.eye(3))
        scores = fusion.scores(h * present[:, :, None], present)
        assert not bool((scores.argmax(1) == 2).any())


# ---- switches ----


def choices() -> list[tuple[str, object]]:
    """Every value of every key that has some."""
    found: list[tuple[str, object]] = []
    for key, field in ProtoEvflConfig.model_fields.items():
        if get_origin(field.annotation) is Literal:
            found += [(key, value) for value in get_args(field.annotation)]
        elif field.annotation is bool:
            found += [(key, value) for value in (True, False)]
    return found


NUMBERS: list[tuple[str, object]] = [
    ("lam", 0.0),
    ("lam", 1.0),
    ("floor", 0.0),
    ("l_ct", 0.0),
    ("l_ct", 1.0),
    ("rho", 0.0),
    ("q0", 1.0),
    ("g", 0.0),
    ("pseudo", 0.3),
    ("pull", 0.1),
    ("lower", 0),
    ("local_weight", 0.0),
    ("withhold", 0),
    ("clip", 0.1),
]
TOGETHER: list[dict[str, object]] = [
    {"head": "prototype", "pull": 0.1, "rows": "aligned"},
    {"gradients": "noise", "epsilon": 1.0},
    {"local": "linear", "share": "relations"},
    {"local": "linear", "pseudo": 0.3, "soft": True},
    {"local": "none", "prototypes": "ema"},
    {"preset": "literal", "rows": "masked"},
]


@pytest.mark.parametrize(
    "keys", [*({key: value} for key, value in choices() + NUMBERS), *TOGETHER], ids=str
)
def test_every_switch_runs(keys: dict, tmp_path: Path) -> None:
    given = config(
        tmp_path,
        parties=PARTIES[:2],
        rows=30,
        rounds=1,
        train={"steps": 2, "batch_size": 4},
        keys={"upper": 1} | keys,
    )
    run = Federated(given).run()
    assert 0 <= run.value("accuracy", round=1) <= 1
    for parameters in bits(run):
        assert all(bool(torch.isfinite(v).all()) for v in parameters.values())


@pytest.mark.parametrize(
    "keys", [{}, {"local": "linear"}, {"local": "none"}, {"prototypes": "ema"}], ids=str
)
def test_guesses_beside_labels_and_a_class_that_takes_no_part(keys: dict) -> None:
    """Rows with a label, guessed ones and the transport in one step; no guess is the class that is
    left out, and no class mean follows a guess."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    h = torch.randn(6, 4, generator=draw, requires_grad=True)
    y, guess = torch.tensor([0, 1, -1, -1, -1, -1]), torch.tensor([-1, -1, 0, 1, 2, 2])
    visiting = torch.randn(3, 5, generator=draw)
    found = {}
    for told in (guess, None):
        head = local_head(ProtoEvflConfig(pseudo=0.3, **keys), 3, 4)
        torch.nn.init.constant_(head.prototypes, 0.5)
        loss = own_loss(
            h,
            y,
            torch.ones(6, dtype=torch.bool),
            head=head,
            visiting=visiting,
            log_prior=torch.zeros(3),
            prior=torch.full((3,), 1 / 3),
            terms=OwnTerms(local=0.5, transport=1.0, pseudo=0.3, tau=0.1, rho=0.5),
            mask=torch.tensor([True, True, False]),
            guess=told,
        )
        loss.backward()
        assert bool(torch.isfinite(loss))
        found[told is None] = head.prototypes.detach().clone()
    assert h.grad is not None and bool(torch.isfinite(h.grad).all())
    assert torch.equal(found[True], found[False])


def test_the_literal_preset_runs_with_every_way_to_an_unseen_class(tmp_path: Path) -> None:
    for rule in ("relations", "prototypes", "vote"):
        keys = {"preset": "literal", "unseen": rule}
        run = Federated(config(tmp_path, data={"unseen": ["cat"]}, keys=keys, rounds=1)).run()
        assert run.value("unseen_accuracy", round=1) >= 0
