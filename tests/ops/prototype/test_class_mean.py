"""class_mean and the op under it: values and gradients by error budget, bits, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkernels import class_mean
from fedkernels.prototype import ops, reference
from fedkernels.testing import LAYOUTS, error_budget, poisoned_empty, random_tensor
from tests.ops.kit import BACKENDS, CPU, DTYPES, assert_same_bits, needs_extension, with_threads
from tests.ops.prototype.means import ORDERS, call

# (N, K, D): nothing, one of each; below, at and above a vector; D beyond a piece of 256; several
# stripes of 2048 rows; more sums than stay in cache; more classes than rows; classes of several
# runs of 1024 rows.
SIZES = [
    (0, 3, 5),
    (1, 1, 1),
    (9, 1, 8),
    (7, 3, 0),
    (50, 4, 3),
    (300, 10, 64),
    (257, 7, 601),
    (20_000, 10, 5),
    (1500, 2100, 16),
    (2500, 300, 112),
    (9, 40, 3),
]


def assert_right(c, backend, note=""):
    actual = c.results(backend=backend)
    near = actual if backend == "reference" else c.results(backend="reference")
    exact = c.exact()
    assert actual.keys() == exact.keys()
    rows, width = c.tensors["x"].shape
    length = 4 * max(rows, width * c.options["n_classes"])
    for name, result in actual.items():
        if result.dtype == torch.int64:
            assert np.array_equal(result.numpy(), exact[name]), (note, name)
            continue
        # A gradient to weights and soft labels is x . g less its mean: of both signs, row by row.
        flat = name in ("dweight", "dlabels", "count")
        result, base, true = (
            t.reshape(1, -1) if flat else t for t in (result, near[name], exact[name])
        )
        report = error_budget(result, base, true, name=name, sum_length=length)
        assert report.ok, (note, report.message())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_hard_labels_within_budget(size, weighted, backend):
    for dtype in (torch.float32, torch.float64):
        c = call(*size, weighted=weighted, momentum=0.75 if weighted else None, dtype=dtype)
        assert_right(c, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "size", [(0, 3, 5), (1, 1, 1), (7, 3, 0), (50, 4, 3), (3000, 10, 65), (300, 600, 9)], ids=str
)
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_within_budget(size, weighted, backend):
    for dtype in (torch.float32, torch.float64):
        c = call(*size, soft=True, weighted=weighted, dtype=dtype)
        assert_right(c, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_every_dtype(soft, dtype, backend):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for width in (17, 300):
        c = call(400, 5, width, soft=soft, weighted=True, momentum=0.5, dtype=dtype)
        found = c.results(backend=backend)
        assert found["mean"].dtype == wide
        assert found["count"].dtype == (wide if soft else torch.int64)
        assert all(g.dtype == dtype for n, g in found.items() if n.startswith("d"))
        assert_right(c, backend)


@needs_extension
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(30_000, 10, 12), (30_000, 700, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_order_of_labels(order, size, dtype):
    """Stripes, and runs of sorted rows: rounded once, so next to the sum in long double."""
    c = call(*size, order=order, weighted=True, dtype=dtype)
    x, labels, weight = (c.tensors[n] for n in ("x", "labels", "weight"))
    found, total, count, bad = ops.primitives("cpu").class_sum(x, labels, weight.float(), size[1])
    exact, exact_total, exact_count, _ = reference.class_sum(
        x.double(), labels, weight.double(), size[1]
    )
    assert torch.equal(count, exact_count) and bad.tolist() == [-1, -1]
    for value, true in ((found, exact), (total, exact_total)):
        # One rounding to float32, and double sums of 30,000 terms whose sizes sum to at most that.
        assert ((value - true).abs() <= 2**-24 * true.abs() + 30_000 * 2**-50).all()


@needs_extension
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [(300, 10, 16), (40_000, 10, 7), (5000, 500, 72), (600, 5, 700)])
def test_the_same_bits_for_every_number_of_threads(size, soft):
    if soft and size[1] > 100:
        size = (4000, 200, 72)
    c = call(*size, soft=soft, weighted=True)
    expected = with_threads(1, lambda: c.results(backend="cpu"))
    for threads in (2, 3, 8):
        assert_same_bits(with_threads(threads, lambda: c.results(backend="cpu")), expected, threads)


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("soft", [False, True])
def test_layouts(layout, soft):
    c = call(60, 5, 16, soft=soft, weighted=True, layout=layout)
    flat = call(60, 5, 16, soft=soft, weighted=True, layout=layout)
    flat.tensors.update({n: t.contiguous() for n, t in flat.tensors.items() if t is not None})
    assert_same_bits(c.results(backend="cpu"), flat.results(backend="cpu"))


@needs_extension
def test_nobody_reads_what_nobody_wrote():
    for size in SIZES:
        for soft in (False, True):
            if soft and size[0] * size[1] > 10**6:
                continue
            c = call(*size, soft=soft, weighted=True)
            clean = c.results(backend="cpu")
            with poisoned_empty():
                poisoned = c.results(backend="cpu")
            assert_same_bits(poisoned, clean, (size, soft))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", ["keep", "zero"])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_an_empty_class(empty, momentum, soft, backend):
    x = torch.tensor([[2.0, 4.0], [4.0, 8.0], [1.0, 1.0]])
    labels = torch.tensor([1, 1, 2])
    if soft:
        labels = torch.nn.functional.one_hot(labels, 4).float()
    previous = torch.tensor([[10.0, 10.0], [1.0, 2.0], [5.0, 7.0], [8.0, 9.0]])
    weight = torch.tensor([1.0, 1.0, 0.0])  # class 2 has one row, of weight 0
    options = {"weight": weight, "empty": empty, "backend": backend}
    plain = class_mean(x, labels, 4, **options)
    assert plain.mean.tolist() == [[0.0, 0.0], [3.0, 6.0], [0.0, 0.0], [0.0, 0.0]]
    assert plain.count.tolist() == [0, 2, 0, 0]
    found = class_mean(x, labels, 4, previous=previous, momentum=momentum, **options).mean
    m = 0.0 if momentum is None else momentum
    expected = previous.clone() if empty == "keep" else torch.zeros(4, 2)
    expected[1] = m * previous[1] + (1 - m) * torch.tensor([3.0, 6.0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_row_of_weight_zero_may_hold_anything(soft, backend):
    c = call(30, 4, 6, soft=soft, weighted=True)
    clean = c.run(backend=backend)
    c.tensors["x"][::5] = torch.nan
    c.tensors["x"][5] = torch.inf
    if soft:
        c.tensors["labels"][10] = torch.nan
    found = c.run(backend=backend)
    assert torch.equal(found.mean, clean.mean) and torch.equal(found.count, clean.count)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_is_nan_is_nan_in_its_own_class(backend):
    c = call(30, 4, 6)
    clean = c.run(backend=backend).mean
    c.tensors["x"][7, 2] = torch.nan
    found = c.run(backend=backend).mean
    owner = int(c.tensors["labels"][7])
    assert found[owner, 2].isnan()
    found[owner, 2] = clean[owner, 2]
    assert torch.equal(found, clean)


@needs_extension
def test_long_classes_keep_their_digits():
    """A float32 running sum of 3e7 ones stops at 2^24; counts and weights as well."""
    x = torch.ones(1, 1).expand(30_000_000, 1).to(torch.bfloat16)
    labels = torch.zeros(1, dtype=torch.int64).expand(30_000_000)
    found = class_mean(x, labels, 2)
    assert found.mean.tolist() == [[1.0], [0.0]] and found.count.tolist() == [30_000_000, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_far_from_the_origin(backend):
    x = random_tensor((4000, 8), seed=3) + 1e4
    labels = torch.arange(4000) % 3
    found = class_mean(x, labels, 3, backend=backend).mean
    exact = class_mean(x.double(), labels, 3, backend="reference").mean
    # The sum and the quotient are rounded once each.
    assert ((found - exact).abs() <= 2 * 2**-24 * exact.abs()).all()


@needs_extension
def test_the_op_leaves_bad_rows_out_and_names_the_first():
    x, labels = random_tensor((9000, 4), seed=1), torch.arange(9000) % 5
    weight = torch.ones(9000)
    labels[8000], labels[4001] = -1, 2**40
    weight[5000], weight[3000] = torch.nan, -1.0
    good = (labels >= 0) & (labels < 5) & (weight > 0)
    for k in (5, 20_000):  # stripes of rows; rows in the order of their classes
        expected = reference.class_sum(x[good], labels[good], weight[good], k)
        for op in (ops.primitives("cpu").class_sum, reference.class_sum):
            found = op(x, labels, weight, k)
            assert found[3].tolist() == [4001, 3000]
            for a, b in zip(found[:3], expected[:3], strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", [CPU])
def test_integers_of_every_width(backend):
    x, labels = random_tensor((20, 3), seed=2), torch.arange(20) % 4
    expected = class_mean(x, labels, 4, backend=backend)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        found = class_mean(x, labels.to(dtype), 4, backend=backend)
        assert torch.equal(found.mean, expected.mean)
