from __future__ import annotations

import torch

from python_api.algorithms.h2tune.relation import (
    download,
    upload_ridge,
    upload_transpose,
)
from python_api.algorithms.h2tune.server import (
    Upload,
    aggregate,
    coverage,
    first_shared,
    permuted,
    weights,
)

ALL = tuple(range(7))


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_first_shared_has_the_published_bound() -> None:
    shared = first_shared(2, 16, generator=gen())
    bound = (7 * 16**2) ** -0.5
    assert shared.shape == (2, 7, 16, 16)
    assert 0.98 * bound < shared.abs().max() <= bound
    assert torch.equal(shared, first_shared(2, 16, generator=gen()))


def test_identity_relation_and_mean_is_fedavg_of_the_middle() -> None:
    """(H3) + (H4) + (H5) with P = I: bit for bit the average of the trained middles."""
    shared = torch.randn(3, 7, 4, 4, generator=gen())
    eye, full = torch.eye(3), torch.ones(3, 7, 4, 4, dtype=torch.bool)
    assert torch.equal(download(eye, shared), shared)
    middles = [shared + torch.randn(3, 7, 4, 4, generator=gen(k)) for k in (1, 2)]
    sent = [Upload(upload_transpose(eye, m), eye, full, ALL, 0.5) for m in middles]
    assert torch.equal(aggregate(shared, sent, rule="mean"), 0.5 * middles[0] + 0.5 * middles[1])
    ridge = [
        Upload(upload_ridge(shared, eye, m - shared, ridge=0.0), eye, full, ALL, 0.5)
        for m in middles
    ]
    fedavg = (middles[0] + middles[1]) / 2
    for rule in ("mean", "counts"):
        torch.testing.assert_close(aggregate(shared, ridge, rule=rule), fedavg)


def test_coverage_counts_entries_through_the_relation() -> None:
    relation = torch.rand(3, 2, generator=gen())
    mask = torch.rand(2, 1, 2, 2, generator=gen(1)) > 0.5
    got = coverage(relation, mask)
    for j in range(3):
        expected = sum(relation[j, l] * mask[l, 0] for l in range(2))
        torch.testing.assert_close(got[j, 0], expected)


def test_counts_is_its_formula() -> None:
    shared = torch.randn(3, 7, 2, 2, generator=gen(), dtype=torch.float64)
    uploads = []
    for k, p in ((1, 0.3), (2, 0.7)):
        relation = torch.rand(3, 2, generator=gen(k), dtype=torch.float64)
        mask = torch.rand(2, 2, 2, 2, generator=gen(k + 5)) > 0.5
        sent = torch.randn(3, 2, 2, 2, generator=gen(k + 9), dtype=torch.float64)
        uploads.append(Upload(sent, relation, mask, (0, 3), p))
    got = aggregate(shared, uploads, rule="counts")
    expected = shared.clone()
    for place, slot in enumerate((0, 3)):
        counts = [u.weight * coverage(u.relation, u.mask)[:, place] for u in uploads]
        steps = [u.shared[:, place] - shared[:, slot] for u in uploads]
        change = sum(c * d for c, d in zip(counts, steps, strict=True))
        expected[:, slot] += change / torch.clamp(sum(counts), min=1e-2 * 0.3)
    torch.testing.assert_close(got, expected)


def test_an_entry_trained_by_one_party_keeps_its_value() -> None:
    shared = torch.randn(2, 7, 2, 2, generator=gen())
    eye = torch.eye(2)
    left = torch.tensor([[True, False], [False, False]]).expand(2, 7, 2, 2)
    right = torch.tensor([[False, True], [True, False]]).expand(2, 7, 2, 2)
    a, b = (torch.randn(2, 7, 2, 2, generator=gen(k)) for k in (1, 2))
    got = aggregate(
        shared,
        [Upload(a, eye, left, ALL, 0.5), Upload(b, eye, right, ALL, 0.5)],
        rule="counts",
    )
    torch.testing.assert_close(got[left], a[left])
    torch.testing.assert_close(got[right], b[right])
    untouched = ~(left | right)
    assert torch.equal(got[untouched], shared[untouched])
    # the published mean halves what each of them learnt
    mean = aggregate(
        shared,
        [Upload(a, eye, left, ALL, 0.5), Upload(b, eye, right, ALL, 0.5)],
        rule="mean",
    )
    torch.testing.assert_close(mean, (a + b) / 2)


def test_slots_of_some_parties_only() -> None:
    shared = torch.randn(1, 7, 2, 2, generator=gen())
    full = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    eye = torch.eye(1)
    a, b = (torch.randn(1, 1, 2, 2, generator=gen(k)) for k in (1, 2))
    for rule in ("counts", "mean"):
        got = aggregate(
            shared,
            [Upload(a, eye, full, (2,), 0.25), Upload(b, eye, full, (5,), 0.75)],
            rule=rule,
        )
        torch.testing.assert_close(got[:, 2], a[:, 0])
        torch.testing.assert_close(got[:, 5], b[:, 0])
        for slot in (0, 1, 3, 4, 6):
            assert torch.equal(got[:, slot], shared[:, slot])


def test_permuted_keeps_values_and_layers_and_breaks_the_rest() -> None:
    shared = torch.randn(2, 7, 4, 4, generator=gen())
    got = permuted(shared, (0, 1, 2), (1, 2, 4, 5), generator=gen(3))
    assert got.shape == (2, 4, 4, 4)
    owned = shared[:, [0, 1, 2]].flatten(2).sort(-1).values
    for layer in range(2):
        rows = [got[layer, m].flatten().sort().values for m in range(4)]
        found = [[i for i in range(3) if torch.equal(row, owned[layer, i])] for row in rows]
        assert all(len(f) == 1 for f in found)
        assert {f[0] for f in found} == {0, 1, 2}
    assert not torch.equal(got[:, 0], shared[:, 1])
    assert torch.equal(got, permuted(shared, (0, 1, 2), (1, 2, 4, 5), generator=gen(3)))


def test_weights() -> None:
    assert weights([10, 30], rule="samples") == [0.25, 0.75]
    assert weights([10, 30], rule="uniform") == [0.5, 0.5]
