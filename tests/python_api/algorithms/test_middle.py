from __future__ import annotations

import pytest
import torch

from python_api.algorithms.h2tune.middle import (
    PartyMiddle,
    block_index,
    pack_mask,
    unpack_mask,
)
from python_api.algorithms.h2tune.relation import download


def build(
    *,
    layers: int = 2,
    server: int = 3,
    slots: int = 2,
    rank: int = 2,
    middle: int = 4,
    **kwargs: str,
) -> tuple[PartyMiddle, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(server, slots, middle, middle, generator=generator)
    return PartyMiddle(shared, layers=layers, rank=rank, generator=generator, **kwargs), shared


def entries(matrix: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return matrix.detach().flatten(2).gather(-1, index)


def test_receive_gathers_the_largest_scores_of_the_download() -> None:
    middle, shared = build()
    T = middle.receive(shared)
    M = download(middle.relation(), shared).detach()
    for l in range(2):
        for m in range(2):
            top = middle.scores[l, m].flatten().topk(4).indices.sort().values
            assert torch.equal(middle.index[l, m], top)
    assert torch.equal(T.flatten(2), entries(M, middle.index))


def test_full_rank_uses_everything_in_place() -> None:
    middle, shared = build(rank=4)
    T = middle.receive(shared)
    assert torch.equal(middle.index, torch.arange(16).expand(2, 2, 16))
    torch.testing.assert_close(T, middle.middle().detach())
    assert middle.trained.all()


def test_equal_scores_move_no_entry_at_a_second_selection() -> None:
    middle, shared = build()
    with torch.no_grad():
        middle.scores.copy_(torch.randint(0, 2, middle.scores.shape).float())
    middle.receive(shared)
    first = middle.index.clone()
    middle.receive(shared)
    assert torch.equal(middle.index, first)


def test_an_entry_that_stays_keeps_its_slot() -> None:
    middle, shared = build(layers=1, server=1, slots=1, rank=2, middle=3)
    with torch.no_grad():
        middle.scores.copy_(torch.tensor([9.0, 8, 7, 6, 1, 1, 1, 1, 1]).view(1, 1, 3, 3))
    middle.receive(shared)
    assert middle.index.flatten().tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        middle.scores[0, 0, 0, 1] = 0.0  # entry 1 leaves
        middle.scores[0, 0, 2, 2] = 5.0  # entry 8 comes, into slot 1
    middle.receive(shared)
    assert middle.index.flatten().tolist() == [0, 8, 2, 3]


def test_gradients_reach_delta_relation_and_scores_on_omega_only() -> None:
    middle, shared = build()
    middle.receive(shared)
    T = middle.gather()
    weight = torch.randn_like(T)
    (T * weight).sum().backward()
    assert middle.relation.theta.grad.abs().max() > 0
    expected = torch.zeros(2, 2, 16).scatter(-1, middle.index, weight.flatten(2)).view(2, 2, 4, 4)
    torch.testing.assert_close(middle.delta.grad, expected)
    torch.testing.assert_close(middle.scores.grad, expected * middle.middle().detach())


def test_block_is_the_leading_block_and_trains_no_scores() -> None:
    middle, shared = build(select="block")
    T = middle.receive(shared)
    torch.testing.assert_close(T, middle.middle().detach()[..., :2, :2])
    assert torch.equal(middle.index, block_index(2, 2, 2, 4))
    assert not middle.scores.requires_grad


def test_every_step_follows_the_scores_and_remembers_what_it_trained() -> None:
    middle, shared = build(select="every_step")
    middle.receive(shared)
    before = middle.index.clone()
    middle.gather()
    with torch.no_grad():
        middle.scores.neg_()
    middle.gather()
    assert not torch.equal(middle.index.sort(-1).values, before.sort(-1).values)
    union = torch.zeros(2, 2, 16, dtype=torch.bool)
    union = union.scatter(-1, before, True).scatter(-1, middle.index, True)
    assert torch.equal(middle.trained.flatten(2), union)


def test_a_download_empties_delta_and_keeps_the_anchor() -> None:
    middle, shared = build()
    middle.receive(shared)
    with torch.no_grad():
        middle.delta += 1
    T = middle.close_round()
    middle.receive(shared + 1)
    assert torch.equal(middle.delta, torch.zeros_like(middle.delta))
    assert torch.equal(middle.previous_T, T)
    assert torch.equal(middle.shared, shared + 1)


def test_upload_holds_what_leaves_and_nothing_else() -> None:
    middle, shared = build()
    middle.receive(shared)
    sent = middle.upload()
    assert set(sent) == {"shared", "relation", "omega"}
    assert torch.equal(sent["shared"], shared)
    assert torch.equal(unpack_mask(sent["omega"], (2, 2, 4, 4)), middle.trained)
    assert sent["omega"].numel() == 2 * 2 * 4 * 4 // 8
    with torch.no_grad():
        middle.delta[0, 0, 0, 0] = 1.0
    expected = torch.einsum("jl,lmab->jmab", middle.relation(), middle.middle())
    torch.testing.assert_close(middle.upload(rule="transpose")["shared"], expected.detach())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 3, 3), (2, 1, 4, 4)])
def test_packed_bits_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.5
    bits = pack_mask(mask)
    assert bits.dtype == torch.uint8
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_mask(bits, shape), mask)


def test_rank_above_the_middle_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 5 above middle_rank 4"):
        build(rank=5)
