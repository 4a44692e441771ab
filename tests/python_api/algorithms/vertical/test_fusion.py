"""Gate, fused head and the vote: what must hold whichever parties are there."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from python_api.algorithms.vertical.active import random_subset
from python_api.algorithms.vertical.fusion import Fusion
from python_api.algorithms.vertical.unseen import calibrated, filled, relation_of
from python_api.config import ProtoEvflConfig

NAMES = ("a", "b", "c")
B, M, C, D = 7, 3, 4, 5


def fusion(**keys) -> Fusion:
    """With a gate that has learnt something."""
    torch.manual_seed(0)
    made = Fusion(NAMES, "a", C, D, ProtoEvflConfig(**keys))
    if made.gate is not None:
        torch.nn.init.normal_(made.gate.out)
    made.log_prior.copy_(torch.log_softmax(torch.randn(M, C), 1))
    return made.eval()


SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(range(M), n)]


@pytest.mark.parametrize("there", SUBSETS)
@pytest.mark.parametrize("keys", [{}, {"gate": False}, {"head": "prototype"}, {"local": "linear"}])
def test_gates_sum_to_one_over_the_parties_present(there: tuple[int, ...], keys: dict) -> None:
    made = fusion(**keys)
    present = torch.zeros(B, M, dtype=torch.bool)
    present[:, list(there)] = True
    h = torch.randn(B, M, D) * present[:, :, None]
    gates = made.gates(h, present)
    torch.testing.assert_close(gates.sum(1), torch.ones(B, C))
    assert bool((gates[~present] == 0).all())
    if len(there) == 1:
        assert bool((gates[:, there[0]] == 1).all())


@pytest.mark.parametrize("keys", [{}, {"head": "prototype"}, {"gate": False}])
def test_to_drop_a_party_is_to_mask_it(keys: dict) -> None:
    """What an absent party's place holds changes nothing; nor does the order of rows."""
    made = fusion(**keys)
    present = torch.ones(B, M, dtype=torch.bool)
    present[:, 1] = False
    h = torch.randn(B, M, D)
    without = h * present[:, :, None]
    other = torch.where(present[:, :, None], h, torch.randn(B, M, D))
    for votes in (False, True):
        made.votes.fill_(votes)
        torch.testing.assert_close(made.scores(without, present), made.scores(other, present))
    alone = made.alone(h, 0)
    only = torch.zeros(B, M, dtype=torch.bool)
    only[:, 0] = True
    torch.testing.assert_close(alone, made.scores(h * only[:, :, None], only))


def test_a_visiting_head_is_the_head_where_one_party_is_present() -> None:
    made = fusion()
    torch.nn.init.normal_(made.head.present)
    torch.nn.init.normal_(made.head.bias)
    present = torch.zeros(B, M, dtype=torch.bool)
    present[:, 2] = True
    h = torch.randn(B, M, D) * present[:, :, None]
    sent = made.head.visiting(2)
    assert sent.shape == (C, D + 1)
    torch.testing.assert_close(h[:, 2] @ sent[:, :-1].T + sent[:, -1], made.logits(h, present))


def test_the_plain_head_is_a_linear_layer_on_all_columns_and_presence_bits() -> None:
    made = fusion(gate=False)
    torch.nn.init.normal_(made.head.present)
    present = torch.rand(B, M) < 0.6
    present[:, 0] = True
    h = torch.randn(B, M, D) * present[:, :, None]
    weight = torch.cat([*made.head.weight, made.head.present.T], 1)
    joined = torch.cat([h.flatten(1), present.float()], 1)
    torch.testing.assert_close(made.logits(h, present), joined @ weight.T + made.head.bias)


def test_a_random_part_of_the_parties() -> None:
    torch.manual_seed(0)
    present = torch.rand(500, M) < 0.7
    present[:, 0] = True
    kept = random_subset(present)
    assert bool(kept.any(1).all()) and not bool((kept & ~present).any())
    several = present.sum(1) > 1
    assert bool((kept != present).any(1)[several].all())
    assert torch.equal(kept[~several], present[~several])


# ---- classes that somebody has never seen ----


def test_a_vote_is_a_distribution_that_says_1_of_c_for_what_it_does_not_know() -> None:
    logits = torch.randn(B, C)
    for known in ([True] * 4, [True, True, False, True], [True, False, False, True]):
        bits = torch.tensor(known)
        found = calibrated(logits, bits)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(B))
        assert torch.allclose(found[:, ~bits], torch.tensor(-math.log(C)))
        ranks = found[:, bits].argsort(1)
        assert torch.equal(ranks, logits[:, bits].argsort(1))
    nothing = calibrated(logits, torch.zeros(C, dtype=torch.bool))
    assert torch.allclose(nothing, torch.tensor(-math.log(C)))


def test_one_vote_alone_never_names_what_the_party_does_not_know() -> None:
    """Of C - 1 known classes that share 1 - 1/C the largest has 1/C or more."""
    known = torch.tensor([True, True, False, True])
    assert bool((calibrated(torch.randn(100, C), known).argmax(1) != 2).all())


def test_relations_fill_a_class_from_those_that_are_known() -> None:
    torch.manual_seed(0)
    mu, known = torch.randn(C, D), torch.tensor([True, True, False, True])
    near = torch.eye(C)
    near[2, 0] = near[0, 2] = 1.0  # class 2 is as class 0
    near[2, [1, 3]] = -1.0
    made = filled(mu, known, near)
    torch.testing.assert_close(made[known], mu[known])
    cosine = torch.nn.functional.cosine_similarity(made[2], mu[0], dim=0)
    assert float(cosine) > 0.999
    assert filled(mu, torch.ones(C, dtype=torch.bool), near) is mu
    # a relation to itself alone tells nothing
    torch.testing.assert_close(filled(mu, known, torch.eye(C)), mu)
    table = relation_of(mu, known)
    assert bool((table[2] == 0).all()) and bool((table[:, 2] == 0).all())
    torch.testing.assert_close(table.diagonal()[known], torch.ones(3))


@pytest.mark.parametrize("rule", ["prototypes", "relations"])
@pytest.mark.parametrize("head", ["linear", "prototype"])
def test_a_class_of_which_nothing_is_known_cannot_win(rule: str, head: str) -> None:
    """No party has a prototype of it, none relates it to another, and there is no vote."""
    made = fusion(unseen=rule, head=head)
    made.votes.fill_(True)
    made.known[:, 2] = False
    if head == "prototype":
        made.head.known[2] = False
    present = torch.ones(200, M, dtype=torch.bool)
    scores = made.scores(torch.randn(200, M, D), present)
    assert bool(torch.isfinite(scores).all()) and bool((scores.argmax(1) != 2).all())


def test_with_relations_it_can() -> None:
    made = fusion(unseen="relations")
    made.votes.fill_(True)
    made.known[0, 2] = False  # the active party alone lacks it
    made.relation.copy_(relation_of(made.local[1].prototypes.detach(), torch.ones(C) > 0))
    h = torch.randn(400, M, D)
    present = torch.zeros(400, M, dtype=torch.bool)
    present[:, 0] = True
    assert bool((made.scores(h, present).argmax(1) == 2).any())
    made.relation.copy_(torch.eye(C))
    assert not bool((made.scores(h, present).argmax(1) == 2).any())
