from __future__ import annotations

import pytest
import torch

from python_api.algorithms.h2tune.relation import (
    Relation,
    depth_relation,
    download,
    last_relation,
    upload_ridge,
    upload_transpose,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_depth_relation_follows_its_formula() -> None:
    relation = depth_relation(5, 3).double()
    expected = torch.empty(5, 3, dtype=torch.float64)
    for j in range(5):
        for l in range(3):
            gap = (j + 0.5) / 5 - (l + 0.5) / 3
            expected[j, l] = torch.exp(torch.tensor(-(gap**2) / (2 * 0.1**2), dtype=torch.float64))
    expected /= expected.sum(0)
    torch.testing.assert_close(relation, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("server", "layers"), [(1, 1), (3, 1), (4, 4), (7, 3)])
def test_columns_of_the_trained_relation_sum_to_one(server: int, layers: int) -> None:
    relation = Relation("depth", server, layers)
    torch.testing.assert_close(relation(), depth_relation(server, layers), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        relation.theta += torch.randn_like(relation.theta)
    torch.testing.assert_close(relation().sum(0), torch.ones(layers))
    assert (relation() > 0).all()


def test_last_relation_aligns_from_the_top() -> None:
    shared = rand(4, 1, 2, 2)
    middle = download(last_relation(4, 3).double(), shared)
    assert torch.equal(middle, shared[1:])


def test_free_relation_has_the_published_bound() -> None:
    relation = Relation("free", 40, 16, generator=torch.Generator().manual_seed(1))()
    assert relation.abs().max() <= 0.25
    assert relation.abs().max() > 0.24
    assert relation.min() < 0


def test_last_is_fixed_and_depth_is_trained() -> None:
    assert not list(Relation("last", 3, 2).parameters())
    assert len(list(Relation("depth", 3, 2).parameters())) == 1


def test_last_gives_parties_of_equal_depth_one_middle_and_a_trained_depth_does_not() -> None:
    shared = rand(3, 2, 4, 4).float()
    last = [download(Relation("last", 3, 3)(), shared) for _ in range(2)]
    assert torch.equal(last[0], last[1])
    assert torch.equal(last[0], shared)
    parties = [Relation("depth", 3, 3) for _ in range(2)]
    with torch.no_grad():
        parties[1].theta += 0.1 * torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    first, second = (download(party(), shared) for party in parties)
    assert not torch.allclose(first, second, atol=1e-3)


def test_download_and_transpose_upload_are_the_einsums() -> None:
    relation, shared, middle = (
        rand(4, 3),
        rand(4, 2, 5, 5, seed=1),
        rand(3, 2, 5, 5, seed=2),
    )
    down = torch.einsum("jl,jmab->lmab", relation, shared)
    up = torch.einsum("jl,lmab->jmab", relation, middle)
    torch.testing.assert_close(download(relation, shared), down)
    torch.testing.assert_close(upload_transpose(relation, middle), up)


def test_untouched_middle_uploads_the_same_bits() -> None:
    shared = rand(4, 2, 5, 5)
    sent = upload_ridge(shared, rand(4, 3, seed=1).abs(), torch.zeros(3, 2, 5, 5).double())
    assert torch.equal(sent, shared)


def test_ridge_upload_is_the_smallest_change_that_carries_the_middle() -> None:
    relation, shared, delta = (
        depth_relation(5, 3).double(),
        rand(5, 2, 4, 4),
        rand(3, 2, 4, 4, seed=1),
    )
    sent = upload_ridge(shared, relation, delta, ridge=0.0)
    torch.testing.assert_close(download(relation, sent), download(relation, shared) + delta)
    # any other G with the same download differs from it by something that P does not see
    change = (sent - shared).flatten(1)
    projector = relation @ torch.linalg.pinv(relation)
    torch.testing.assert_close(projector @ change, change)


def test_default_ridge_loses_about_a_hundredth_with_identity() -> None:
    delta = rand(3, 1, 4, 4)
    sent = upload_ridge(torch.zeros(3, 1, 4, 4).double(), torch.eye(3).double(), delta)
    torch.testing.assert_close(sent, delta / 1.01)


def test_ridge_is_relative_to_the_scale_of_the_relation() -> None:
    shared, delta, relation = (
        rand(3, 1, 2, 2),
        rand(2, 1, 2, 2, seed=1),
        rand(3, 2, seed=2),
    )
    once = upload_ridge(shared, relation, delta) - shared
    thrice = upload_ridge(shared, 3 * relation, delta) - shared
    torch.testing.assert_close(once, 3 * thrice)


def test_more_layers_than_the_shared_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="layers 4"):
        Relation("depth", 3, 4)
