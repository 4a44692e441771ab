from __future__ import annotations

import torch
from torch.nn import functional as F

from python_api.algorithms.h2tune.losses import (
    anchor,
    logit_term,
    norm_literal,
    norm_small,
)


def test_norms_are_their_formulas() -> None:
    T, S, P = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4), torch.randn(5, 2)
    adapters = [(l, m) for l in range(2) for m in range(3)]
    small = sum((T[a] ** 2).sum() for a in adapters) / 6
    torch.testing.assert_close(norm_small(T), small)
    flat = [S[a].norm() for a in adapters] + [T[a].norm() for a in adapters] + [P.norm()]
    torch.testing.assert_close(norm_literal(S, T, P), torch.stack(flat).mean())


def test_literal_norm_has_a_finite_gradient_at_zero() -> None:
    T = torch.zeros(1, 1, 2, 2, requires_grad=True)
    norm_literal(torch.ones(1, 1, 3, 3), T, torch.ones(1, 1)).backward()
    assert torch.equal(T.grad, torch.zeros_like(T))


def test_anchor_with_one_selection_is_the_published_term() -> None:
    T, old = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    index = torch.arange(9).expand(2, 2, 9).contiguous()
    got = anchor(T, index, old, index, middle_rank=3)
    rows = [
        F.kl_div(
            torch.log_softmax(T[l, m].flatten(), 0),
            torch.softmax(old[l, m].flatten(), 0),
            reduction="sum",
        )
        for l in range(2)
        for m in range(2)
    ]
    torch.testing.assert_close(got, torch.stack(rows).mean())


def test_anchor_compares_entries_not_slots() -> None:
    """A T whose slots are in another order, entry for entry the same, costs nothing."""
    T = torch.randn(1, 1, 2, 2)
    index = torch.tensor([[[0, 2, 5, 7]]])
    order = torch.tensor([2, 0, 3, 1])
    moved = T.flatten()[order].view(1, 1, 2, 2)
    got = anchor(moved, index[..., order], T, index, middle_rank=3)
    torch.testing.assert_close(got, torch.zeros(()))


def test_anchor_ignores_entries_in_one_omega_only() -> None:
    old, new = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2, requires_grad=True)
    before, after = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 1, 4, 5]]])
    got = anchor(new, after, old, before, middle_rank=3)
    p = torch.softmax(old.flatten()[:2], 0)
    expected = (p * (p.log() - torch.log_softmax(new.flatten()[:2], 0))).sum()
    torch.testing.assert_close(got, expected)
    got.backward()
    assert torch.equal(new.grad.flatten()[2:], torch.zeros(2))
    assert new.grad.flatten()[:2].abs().min() > 0


def test_anchor_of_disjoint_selections_is_zero_with_a_finite_gradient() -> None:
    new = torch.randn(1, 1, 1, 2, requires_grad=True)
    got = anchor(
        new,
        torch.tensor([[[0, 1]]]),
        torch.randn(1, 1, 1, 2),
        torch.tensor([[[2, 3]]]),
        middle_rank=2,
    )
    got.backward()
    assert got == 0
    assert torch.equal(new.grad, torch.zeros_like(new))


def test_logit_term_is_a_mean_over_rows_without_gradient_to_phase_one() -> None:
    z, z1 = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    got = logit_term(z, z1)
    p = torch.softmax(z1, -1)
    rows = (p * (p.log() - torch.log_softmax(z, -1))).sum(-1)
    torch.testing.assert_close(got, rows.mean())
    got.backward()
    assert z1.grad is None
    assert z.grad.abs().sum() > 0
    assert logit_term(z[:0], z1[:0]) == 0
