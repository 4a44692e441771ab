"""Identities of the class priors, the transport loss and the selection."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize, one_hot

from fedkernels import conditional_transport, prototype_softmax
from python_api.algorithms.proto_evfl.learner import prior_of
from python_api.algorithms.proto_evfl.own import transport_loss
from python_api.algorithms.proto_evfl.prior import em_step, histogram, mixed
from python_api.algorithms.proto_evfl.selection import Survey, ramp, select, survey
from python_api.config import ProtoEvflConfig

TAU = 0.1


def points(n: int = 40, classes: int = 4, width: int = 6, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, generator=draw, dtype=torch.float64)
    return h, torch.randn(classes, width, generator=draw, dtype=torch.float64)


def plans(h, mu, prior):
    """pi(c | h) (n, C) and pi(i | mu) (n, C), written out."""
    score = cosine_similarity(h[:, None], mu[None], dim=2) / TAU
    return torch.softmax(score + prior.log(), 1), torch.softmax(score, 0)


def test_plans_sum_to_one_and_the_loss_is_their_expected_cost() -> None:
    h, mu = points()
    prior = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    to_class, to_row = plans(h, mu, prior)
    cost = 1 - cosine_similarity(h[:, None], mu[None], dim=2)
    for rho in (0.0, 0.3, 1.0):
        wanted = rho * (to_class * cost).sum(1).mean()
        wanted = wanted + (1 - rho) * (prior * (to_row * cost).sum(0)).sum()
        torch.testing.assert_close(transport_loss(h, mu, prior, tau=TAU, rho=rho), wanted)
    # the plans of the kernels: from each row's probabilities, and from each side's log-sum-exp
    found = prototype_softmax(h, mu, metric="cosine", temperature=TAU, log_prior=prior.log())
    torch.testing.assert_close(found.prob.sum(1), torch.ones(len(h), dtype=torch.float64))
    kernel = conditional_transport(h, mu, q=prior, logits="cosine", temperature=TAU)
    score = cosine_similarity(h[:, None], mu[None], dim=2) / TAU
    rows = (score + prior.log() - kernel.row_lse[:, None]).exp().sum(1)
    columns = (score - torch.tensor(float(len(h))).log() - kernel.col_lse).exp().sum(0)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    torch.testing.assert_close(columns, torch.ones_like(columns))


def test_the_transport_loss_is_zero_only_where_directions_coincide() -> None:
    h, mu = points()
    prior = torch.full((4,), 0.25, dtype=torch.float64)
    assert float(transport_loss(h, mu, prior, tau=TAU)) > 0
    one = torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    same = torch.linspace(0.1, 9, 40, dtype=torch.float64)[:, None] * one
    towards = torch.arange(1, 5, dtype=torch.float64)[:, None] * one
    assert abs(float(transport_loss(same, towards, prior, tau=TAU))) < 1e-12
    same[7, 0] += 0.5
    assert float(transport_loss(same, towards, prior, tau=TAU)) > 1e-6
    # classes apart from each other, each row on its own one: 0 as the plans harden
    y = torch.arange(40) % 4
    apart = one_hot(torch.arange(4), 6).double()
    assert float(transport_loss(apart[y], apart, prior, tau=0.02)) < 1e-12


def test_a_uniform_prior_gives_the_plain_bidirectional_loss() -> None:
    h, mu = points()
    to_class, to_row = plans(h, mu, torch.ones(4, dtype=torch.float64))
    cost = 1 - cosine_similarity(h[:, None], mu[None], dim=2)
    plain = 0.5 * (to_class * cost).sum(1).mean() + 0.5 * (to_row * cost).sum(0).mean()
    even = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(transport_loss(h, mu, even, tau=TAU), plain)


def test_no_gradient_reaches_the_prototypes_of_the_transport() -> None:
    h, mu = points()
    h.requires_grad_()
    mu.requires_grad_()
    transport_loss(h, mu, torch.full((4,), 0.25, dtype=torch.float64), tau=TAU).backward()
    assert mu.grad is None and bool((h.grad != 0).any())
    assert float(transport_loss(h[:0].detach(), mu, torch.ones(4), tau=TAU)) == 0


def test_em_recovers_a_known_histogram() -> None:
    truth = torch.tensor([0.60, 0.25, 0.10, 0.04, 0.01])
    counts = (2000 * truth).round().long()
    y = torch.repeat_interleave(torch.arange(5), counts)
    draw = torch.Generator().manual_seed(0)
    y = y[torch.randperm(len(y), generator=draw)]
    mu = torch.eye(5, 8)
    x = mu[y] + 0.1 * torch.randn(len(y), 8, generator=draw)
    prior = torch.full((5,), 0.2)

    def update(mass: torch.Tensor, count: int) -> torch.Tensor:
        nonlocal prior
        prior = em_step(prior, mass, count, 0.1)
        return prior

    for _ in range(12):
        found = survey(lambda rows: rows, x, mu, prior, tau=TAU, on_chunk=update, chunk=256)
    assert float((prior - truth).abs().max()) < 0.02
    torch.testing.assert_close(prior.sum(), torch.tensor(1.0))
    assert bool((found.guess == y).float().mean() > 0.99)


def test_em_stays_where_it_is_without_rows() -> None:
    prior = torch.tensor([0.3, 0.7])
    assert em_step(prior, torch.zeros(2), 0, 0.1) is prior
    assert torch.equal(em_step(prior, torch.tensor([3.0, 7.0]), 10, 1.0), prior)


@pytest.mark.parametrize("rule", ["arithmetic", "geometric"])
def test_lam_is_the_share_of_the_local_prior(rule: str) -> None:
    a, b = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    world = torch.tensor([0.4, 0.3, 0.3])
    torch.testing.assert_close(mixed(a, world, lam=1.0, floor=0, rule=rule), a)
    one, other = (mixed(p, world, lam=0.0, floor=0, rule=rule) for p in (a, b))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, world)
    keys = ProtoEvflConfig(floor=0.0, mix=rule, lam=0.3)
    torch.testing.assert_close(prior_of("local", a, world, keys), a)
    torch.testing.assert_close(prior_of("global", a, world, keys), world)
    between = mixed(a, world, lam=0.3, floor=0, rule=rule)
    torch.testing.assert_close(prior_of("mixed", a, world, keys), between)
    torch.testing.assert_close(between.sum(), torch.tensor(1.0))


def test_no_class_falls_below_the_floor() -> None:
    w = mixed(torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0]), lam=0.5, floor=0.2)
    assert float(w.min()) > 0.2 / 4 / (1 + 0.2)
    assert histogram(torch.tensor([-1, -1]), 4).tolist() == [0.25] * 4


def test_without_a_floor_a_class_that_is_never_seen_is_frozen_out() -> None:
    """w_c = 0: nothing is ever transported to the class, and EM cannot bring it back."""
    draw = torch.Generator().manual_seed(0)
    mu = torch.eye(3, 5)
    x = mu[torch.arange(90) % 3] + 0.05 * torch.randn(90, 5, generator=draw)
    start = torch.tensor([0.5, 0.5, 0.0])
    for floor, frozen in ((0.0, True), (0.2, False)):
        prior = mixed(start, start, lam=0.5, floor=floor)
        found = survey(lambda rows: rows, x, mu, prior, tau=TAU)
        assert (float(found.mass[2]) == 0) == frozen
        assert bool((found.guess != 2).all()) == frozen
        after = em_step(prior, found.mass, 90, 0.1)
        assert (float(after[2]) == 0) == frozen
        assert bool(torch.isfinite(found.cost).all())


def lopsided(n: int = 400):
    """Predicted classes with 6 : 3 : 1, and costs without ties."""
    draw = torch.Generator().manual_seed(1)
    prior = torch.tensor([0.6, 0.3, 0.1])
    guess = torch.multinomial(prior, n, replacement=True, generator=draw)
    cost = torch.rand(n, generator=draw)
    return Survey(cost, guess, torch.rand(n, generator=draw), torch.ones(3)), prior


def test_raising_g_keeps_more_of_the_rarest_class() -> None:
    found, prior = lopsided()
    rare, shares = found.guess == 2, []
    for g in (0.0, 0.25, 0.5, 1.0, 2.0):
        kept = select(found, prior, rule="class", share=0.5, g=g)
        shares.append(float(kept[rare].sum() / kept.sum()))
        assert int(kept[rare].sum()) == -(-int(rare.sum()) // 2)  # w_min / w_c = 1 there
        worst = found.cost[kept & (found.guess == 0)].max()
        assert bool((found.cost[~kept & (found.guess == 0)] >= worst).all())
    assert shares == sorted(shares) and shares[-1] > shares[0]


@pytest.mark.parametrize("rule", ["cheapest", "class", "none"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_selection_never_empties_a_party(rule: str, n: int) -> None:
    found, prior = lopsided(n)
    kept = select(found, prior, rule=rule, share=1e-6, g=3.0)
    assert kept.shape == (n,) and bool(kept.any())
    assert bool(select(found, prior, rule=rule, share=1.0, g=0.0).all())
    nothing = Survey(*(torch.zeros(0) for _ in range(3)), torch.zeros(3))
    assert len(select(nothing, prior, rule=rule, share=0.5)) == 0


def test_the_cheapest_share_of_all_rows() -> None:
    found, prior = lopsided(10)
    kept = select(found, prior, rule="cheapest", share=ramp(0.3, 1, 10))
    assert int(kept.sum()) == 3 and float(found.cost[kept].max()) < float(found.cost[~kept].min())


def test_memory_of_a_survey_is_one_chunk() -> None:
    """Rows are looked at `chunk` at a time, with the same result."""
    h, mu = points(100)
    h, mu, prior = h.float(), normalize(mu.float(), dim=1), torch.full((4,), 0.25)
    seen: list[int] = []

    def encode(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows

    small = survey(encode, h, mu, prior, tau=TAU, chunk=32)
    assert seen == [32, 32, 32, 4]
    whole = survey(encode, h, mu, prior, tau=TAU, chunk=100)
    torch.testing.assert_close(small.cost, whole.cost)
    torch.testing.assert_close(small.mass, whole.mass)
    assert torch.equal(small.guess, whole.guess)
