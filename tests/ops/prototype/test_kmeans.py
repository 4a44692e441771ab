"""k-means: scikit-learn's iterations from the same centers, seeding, repair, bits, errors."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from sklearn import cluster

import fedkernels
from fedkernels import BackendUnavailable, kmeans
from fedkernels.prototype import reference
from fedkernels.prototype.seeding import fixed_order_sum, plus_plus
from fedkernels.testing import poisoned_empty
from tests.ops.kit import BACKENDS, CPU, DTYPES, needs_extension, with_threads


def blobs(rows, clusters, width, *, spread=0.5, seed=0, dtype=torch.float64):
    """Normal clouds of spread around normal centres; rows in random order."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(clusters, width, generator=generator, dtype=torch.float64)
    owner = torch.randint(0, clusters, (rows,), generator=generator)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return (centers[owner] + spread * noise).to(dtype)


def seeded(x, k, seed=0, **options):
    return kmeans(x, k, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tol", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("size", [(500, 7, 5), (1000, 12, 16), (400, 30, 3)], ids=str)
def test_the_iterations_are_scikit_learns(size, tol, backend):
    x = blobs(*size)
    k = size[1]
    first = x[torch.randperm(size[0], generator=torch.Generator().manual_seed(1))[:k]]
    theirs = cluster.KMeans(
        k, init=first.numpy(), n_init=1, tol=tol, max_iter=100, algorithm="lloyd"
    ).fit(x.numpy())
    ours = kmeans(x, k, init=first, tol=tol, backend=backend)
    assert ours.n_iter == theirs.n_iter_
    assert np.array_equal(ours.index.numpy(), theirs.labels_)
    # Both are the same means in float64, of at most 1,000 rows.
    assert np.abs(ours.centers.numpy() - theirs.cluster_centers_).max() <= 1000 * 2**-52
    assert ours.inertia.item() == pytest.approx(theirs.inertia_, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_iter_ends_with_the_rows_of_the_last_centers(backend):
    x = blobs(800, 12, 4)
    for most in (1, 2, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = cluster.KMeans(12, init=x[:12].numpy(), n_init=1, max_iter=most).fit(x.numpy())
        ours = kmeans(x, 12, init=x[:12], max_iter=most, backend=backend)
        assert ours.n_iter == theirs.n_iter_ == most
        assert np.array_equal(ours.index.numpy(), theirs.labels_)
        square = (x - ours.centers[ours.index]).square().sum().item()
        assert ours.inertia.item() == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, backend):
    x = blobs(400, 5, 6, spread=0.05, dtype=dtype)
    found = seeded(x, 5, backend=backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.centers.dtype == wide and found.inertia.dtype == torch.float64
    assert found.index.dtype == torch.int64 and found.index.shape == (400,)
    exact = seeded(x.double(), 5, backend="reference")
    # Well apart: every backend finds the same clusters, whatever the order of the centres.
    assert found.inertia.item() == pytest.approx(exact.inertia.item(), rel=1e-5)
    means = torch.stack([x[found.index == j].double().mean(0) for j in range(5)])
    assert (found.centers - means).abs().max() <= 4 * 2.0**-24 * means.abs().max()


@needs_extension
@pytest.mark.parametrize("size", [(3000, 9, 5), (20_000, 6, 3), (2500, 150, 40)], ids=str)
def test_the_same_bits_for_every_number_of_threads(size):
    x = blobs(*size, dtype=torch.float32)
    expected = with_threads(1, lambda: seeded(x, size[1], max_iter=3))
    for threads in (2, 5):
        found = with_threads(threads, lambda: seeded(x, size[1], max_iter=3))
        for name in ("centers", "index", "inertia"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (threads, name)
        assert found.n_iter == expected.n_iter


@pytest.mark.parametrize("backend", [CPU])
def test_a_seed_decides_everything(backend):
    x = blobs(500, 6, 4, dtype=torch.float32)
    a, b = seeded(x, 6, 3, backend=backend), seeded(x, 6, 3, backend=backend)
    assert torch.equal(a.centers, b.centers)
    torch.manual_seed(5)
    c = kmeans(x, 6, backend=backend)
    torch.manual_seed(5)
    assert torch.equal(c.centers, kmeans(x, 6, backend=backend).centers)
    starts = [plus_plus(reference, x, 6, torch.Generator().manual_seed(i)) for i in range(20)]
    assert len({tuple(s.tolist()) for s in starts}) > 10


@needs_extension
def test_seeds_are_as_good_as_scikit_learns():
    x = blobs(800, 20, 8, spread=0.3)
    theirs = [
        cluster.KMeans(20, n_init=1, random_state=i, max_iter=100).fit(x.numpy()).inertia_
        for i in range(10)
    ]
    ours = [seeded(x, 20, i).inertia.item() for i in range(10)]
    # Means of 10 runs whose spread is some 5 % of the mean: 4 standard errors of a difference.
    assert np.mean(ours) <= np.mean(theirs) * (1 + 4 * 0.05 * (2 / 10) ** 0.5)


@pytest.mark.once
def test_draws_follow_the_squared_distances():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = torch.zeros(3, 3)
    for i in range(900):
        first, second = plus_plus(reference, x, 2, torch.Generator().manual_seed(i)).tolist()
        pairs[first, second] += 1
    assert pairs.diagonal().sum() == 0
    # Four standard errors of a share of 900 draws, and of some 300.
    assert ((pairs.sum(1) / 900 - 1 / 3).abs() <= 4 * (2 / 9 / 900) ** 0.5).all()
    # Row 0 first: squares 1 and 9; of two draws the better is row 2, unless both are row 1.
    assert abs(float(pairs[0, 2] / pairs[0].sum()) - 0.99) <= 4 * (0.01 / 260) ** 0.5
    # Row 1 first: squares 1 and 4, and again row 2 leaves less.
    assert abs(float(pairs[1, 2] / pairs[1].sum()) - 0.96) <= 4 * (0.04 / 260) ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_centre_without_rows_takes_the_farthest_row(backend):
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0]])
    found = kmeans(x, 3, init=torch.tensor([[0.0], [1.0], [1000.0]]), backend=backend)
    assert found.centers.flatten().tolist() == [0.5, 10.5, 50.0]
    assert found.index.tolist() == [0, 0, 1, 1, 2] and found.inertia.item() == 1.0
    # Several at once, in the order of their distances; ties by the lower row.
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0], [-5.0], [7.0]])
    init = torch.tensor([[0.0], [100.0], [200.0], [300.0]])
    found = kmeans(x, 4, init=init, max_iter=1, backend=backend)
    assert found.centers.flatten().tolist() == [0.0, 7.0, 5.0, -5.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_repair_is_scikit_learns(backend):
    x = blobs(300, 5, 3)
    first = x[:6].clone()
    first[4] = 100.0  # nearest to no row
    theirs = cluster.KMeans(6, init=first.numpy(), n_init=1, tol=0).fit(x.numpy())
    ours = kmeans(x, 6, init=first, tol=0.0, backend=backend)
    assert ours.n_iter == theirs.n_iter_ and np.array_equal(ours.index.numpy(), theirs.labels_)
    assert np.abs(ours.centers.numpy() - theirs.cluster_centers_).max() <= 300 * 2**-50


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_distinct_rows_than_centres(backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(20, 1)
    found = seeded(x, 5, backend=backend)
    assert found.inertia.item() == 0.0
    assert torch.equal(found.centers[found.index], x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges(backend):
    x = blobs(9, 2, 3, dtype=torch.float32)
    each = seeded(x, 9, backend=backend)
    assert each.inertia.item() == 0.0 and sorted(each.index.tolist()) == list(range(9))
    one = seeded(x, 1, backend=backend)
    torch.testing.assert_close(one.centers[0], x.mean(0))
    single = seeded(x[:1], 1, backend=backend)
    assert torch.equal(single.centers, x[:1]) and single.inertia.item() == 0.0
    nothing = seeded(torch.ones(4, 0), 2, backend=backend)
    assert nothing.centers.shape == (2, 0) and nothing.inertia.item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_clusters_far_from_the_origin(backend):
    """Spread 1 around +-1e4: an expansion in float32 would give 94 % of the rows a wrong centre."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(600, 1, generator=generator) < 0.5, -1e4, 1e4)
    parts = torch.where(torch.rand(600, 1, generator=generator) < 0.5, -3.0, 3.0)
    x = sign + parts + 0.3 * torch.randn(600, 8, generator=generator)
    found = seeded(x, 4, backend=backend)
    exact = seeded(x.double(), 4, backend="reference")
    assert found.inertia.item() == pytest.approx(exact.inertia.item(), rel=1e-3)
    owner = (sign + parts)[:, 0]
    for j in range(4):
        assert owner[found.index == j].unique().numel() == 1


@needs_extension
def test_nobody_reads_what_nobody_wrote():
    x = blobs(3000, 20, 9, dtype=torch.float32)
    clean = seeded(x, 20)
    with poisoned_empty():
        poisoned = seeded(x, 20)
    assert torch.equal(clean.centers, poisoned.centers)
    assert torch.equal(clean.index, poisoned.index) and torch.equal(clean.inertia, poisoned.inertia)


def test_a_sum_in_fixed_order():
    for count in (0, 1, 1023, 1024, 1025, 3_000_001):
        values = torch.rand(count, generator=torch.Generator().manual_seed(count))
        found = with_threads(1, lambda v=values: fixed_order_sum(v))
        assert torch.equal(found, with_threads(3, lambda v=values: fixed_order_sum(v)))
        assert found.item() == pytest.approx(values.double().sum().item(), rel=1e-12)


_MEMORY = """
    import resource, torch
    from fedkernels import kmeans
    torch.set_num_threads(2)
    N, K, D = 60_000, 1000, 4             # an (N, K) matrix would be 240 MB
    x = torch.randn(N, D)
    kmeans(x[:2000], K, init=x[:K], max_iter=1, backend="cpu")
    kmeans(x[:2000], 5, max_iter=1, backend="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kmeans(x, K, init=x[:K], max_iter=2, backend="cpu")
    kmeans(x, 5, max_iter=2, backend="cpu")
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.once
@needs_extension
def test_no_matrix_of_rows_and_centers():
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 48


ones = torch.ones
BAD = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": ones(5)}, ValueError, r"x must be \(N, D\), got \(5,\)"),
    ({"x": ones(6, 3, dtype=torch.int64)}, TypeError, "x must be float32, .*got torch.int64"),
    ({"x": ones(0, 3)}, ValueError, r"x must have at least one row, got \(0, 3\)"),
    (
        {"x": torch.tensor([[0.0], [torch.nan], [1.0]])},
        ValueError,
        "x must be finite, row 1 holds NaN or infinity",
    ),
    ({"x": torch.tensor([[0.0], [1.0], [-torch.inf]])}, ValueError, "x must be finite, row 2"),
    ({"x": torch.tensor([[0.0], [1e30]])}, ValueError, "x is too large: squares .*torch.float32"),
    ({"k": 0}, ValueError, "k must lie between 1 and the 6 rows of x, got 0"),
    ({"k": 7}, ValueError, "k must lie between 1 and the 6 rows of x, got 7"),
    ({"k": 2.0}, TypeError, "k must be an int, got float"),
    ({"max_iter": 0}, ValueError, "max_iter must be at least 1, got 0"),
    ({"max_iter": 1.5}, TypeError, "max_iter must be an int, got float"),
    ({"tol": -1.0}, ValueError, "tol must be finite and at least 0, got -1.0"),
    ({"tol": float("nan")}, ValueError, "tol must be finite and at least 0, got nan"),
    ({"tol": "0"}, TypeError, "tol must be a number, got str"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    (
        {"init": "random"},
        ValueError,
        r"init must be k-means\+\+ or a \(k, D\) tensor; got 'random'",
    ),
    ({"init": ones(3, 3)}, ValueError, r"init must be \(2, 3\), got \(3, 3\)"),
    ({"init": ones(2, 3).long()}, TypeError, "init must be float32, .*got torch.int64"),
    ({"init": ones(2, 3) * torch.nan}, ValueError, "init must be finite"),
    ({"init": ones(2, 3, device="meta")}, ValueError, "init must be on x's device cpu, got meta"),
    ({"backend": "gpu"}, ValueError, "backend must be one of"),
    ({"backend": "cuda"}, BackendUnavailable, "the kernel runs on CUDA"),
]


@pytest.mark.once
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line(change, error, message):
    arguments = {"x": torch.arange(18.0).view(6, 3), "k": 2, **change}
    with pytest.raises(error, match=message) as caught:
        kmeans(**arguments)
    assert "\n" not in str(caught.value)
