"""Every backend of the differentiable functions within the error budget, forward and backward."""

from __future__ import annotations

import pytest
import torch

from fedkernels.testing import LAYOUTS, poisoned_empty
from tests.ops.kit import DTYPES, assert_same_bits, with_threads
from tests.ops.prototype.kit import METRICS, assert_right, backends, call, cpu, needs_kernel

FUNCTIONS = ("distance", "softmax", "cross_entropy")
# (N, K, D): one of each; below, at and above a vector, a panel and a block of rows; K beyond a
# block of columns; several stripes of rows; D beyond a run of a product.
SMALL = [(1, 1, 3), (4, 3, 1), (3, 5, 7), (1, 9, 4), (9, 1, 4), (2, 33, 2)]
SIZES = [
    (48, 16, 16),
    (49, 17, 33),
    (100, 10, 64),
    (97, 129, 20),
    (5, 300, 12),
    (1100, 40, 24),
    (20, 7, 600),
]
OPTIONS = {
    "distance": ({},),
    "softmax": ({}, {"prior": False, "mask": "rows"}, {"mask": "shared"}),
    "cross_entropy": (
        {},
        {"soft": True, "weighted": True, "reduction": "sum"},
        {"mask": "rows", "weighted": True, "prior": False},
        {"mask": "shared", "reduction": "none"},
        {"soft": True, "mask": "rows", "reduction": "none"},
    ),
}
EVERY = [(f, m) for f in FUNCTIONS for m in METRICS]


def options_of(function, turn):
    choices = OPTIONS[function]
    return choices[turn % len(choices)]


@pytest.mark.parametrize(("function", "metric"), EVERY)
@needs_kernel(*FUNCTIONS)
def test_float32_and_float64_within_budget(function, metric):
    turn = METRICS.index(metric)
    for size in SMALL:
        if size[2] == 1 and metric == "cosine":
            continue  # all gradients are 0, and what is left is rounding
        turn += 1
        dtype = (torch.float32, torch.float64)[turn % 2]
        more = options_of(function, turn)
        calls = [
            call(function, *size, metric=metric, dtype=dtype, seed=100 * i, **more)
            for i in range(12)
        ]
        assert_right(calls, "cpu", (size, dtype, more))
    for size in SIZES:
        turn += 1
        more = options_of(function, turn)
        for dtype in (torch.float32, torch.float64)[: 1 if size[0] > 1000 else 2]:
            c = call(function, *size, metric=metric, dtype=dtype, **more)
            assert_right(c, "cpu", (size, dtype, more))


@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "metric"), EVERY)
def test_every_dtype_and_option(function, metric, dtype, backend):
    for more in OPTIONS[function]:
        c = call(function, 67, 9, 17, metric=metric, dtype=dtype, **more)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for name, value in c.results(backend=backend).items():
            assert value.dtype == (dtype if name == "dx" else wide), name
        assert_right(c, backend, more)


@pytest.mark.parametrize("spread", [60.0, 400.0])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", [cpu(*FUNCTIONS)])
def test_logits_too_wide_for_a_shared_exponential(backend, metric, spread):
    for function in FUNCTIONS[1:]:
        c = call(function, 60, 20, 16, metric=metric, spread=spread, dtype=torch.float64)
        assert_right(c, backend)
        c = call(function, 60, 20, 16, metric=metric, spread=spread)
        assert_right(c, backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
def test_layouts(backend, function, layout):
    c = call(function, 50, 20, 16, layout=layout, **OPTIONS[function][-1])
    flat = c.change(**{n: t.contiguous() for n, t in c.tensors.items()})
    found = {n: t.detach() for n, t in c.outputs(backend=backend).items()}
    assert_same_bits(found, flat.outputs(backend=backend))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", [cpu(*FUNCTIONS)])
def test_the_same_bits_for_every_number_of_threads(backend, function):
    for size in ((1700, 40, 12), (30, 700, 12), (4096, 5, 3)):
        for metric in METRICS:
            c = call(
                function, *size, metric=metric, mask=None if function == "distance" else "rows"
            )
            once = with_threads(1, lambda c=c: c.results(backend=backend))
            for threads in (2, 3, 8):
                again = with_threads(threads, lambda c=c: c.results(backend=backend))
                assert_same_bits(again, once, (size, metric, threads))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", [cpu(*FUNCTIONS)])
def test_a_rows_bits_are_its_own(backend, metric):
    """Whatever else is in the batch, and wherever in it the row stands."""
    for function, names in (("distance", ("distance", "dx")), ("softmax", ("prob", "lse"))):
        c = call(function, 203, 21, 19, metric=metric)
        whole = c.outputs(backend=backend)
        for rows in (slice(0, 1), slice(5, 6), slice(7, 40), slice(50, 203), slice(202, 203)):
            alone = c.rows(rows).outputs(backend=backend)
            for name in names:
                if name in alone:
                    assert torch.equal(alone[name], whole[name][rows]), (name, rows)
    c = call("cross_entropy", 203, 21, 19, metric=metric, reduction="none")
    whole = c.outputs(backend=backend)["loss"]
    for rows in (slice(0, 1), slice(7, 40), slice(202, 203)):
        assert torch.equal(c.rows(rows).outputs(backend=backend)["loss"], whole[rows])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
def test_a_nan_row_is_nan_alone(backend, function, metric):
    more = {"reduction": "none"} if function == "cross_entropy" else {}
    c = call(function, 130, 21, 19, metric=metric, **more)
    if function == "cross_entropy":
        c.tensors["target"][:] = 3
    clean = c.outputs(backend=backend)
    for row in (0, 65, 129):
        x = c.tensors["x"].clone()
        x[row, 7] = torch.nan
        found = c.change(x=x).outputs(backend=backend)
        keep = torch.arange(130) != row
        for name, value in found.items():
            if name == "mass":
                assert bool(value.isnan().all())
            else:
                assert torch.equal(value[keep], clean[name][keep]), name
                assert bool(value[row].isnan().all()), name


@pytest.mark.parametrize("function", FUNCTIONS)
@needs_kernel(*FUNCTIONS)
def test_nobody_reads_what_nobody_wrote(function):
    for turn, size in enumerate(((50, 20, 10), (3, 140, 5), (1100, 9, 3), (7, 3, 0), (0, 4, 3))):
        for metric in METRICS:
            for more in (OPTIONS[function][0], options_of(function, turn)):
                if size[0] == 0 and function == "cross_entropy":
                    more = {**more, "reduction": "sum"}
                c = call(function, *size, metric=metric, **more)
                clean = c.results(backend="cpu")
                with poisoned_empty():
                    poisoned = c.results(backend="cpu")
                assert_same_bits(poisoned, clean, (size, metric, more))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", backends(*FUNCTIONS))
def test_no_points_and_no_features(backend, function):
    reduction = {"reduction": "sum"} if function == "cross_entropy" else {}
    for metric in METRICS:
        empty = call(function, 0, 3, 4, metric=metric, **reduction).results(backend=backend)
        for name, value in empty.items():
            assert not value.any(), name
        flat = call(function, 6, 3, 0, metric=metric, prior=False)
        found = flat.results(backend=backend)
        if function == "distance":
            assert bool((found["distance"] == (1.0 if metric == "cosine" else 0.0)).all())
        elif function == "softmax":
            torch.testing.assert_close(found["prob"], torch.full((6, 3), 1 / 3))
        else:
            torch.testing.assert_close(found["loss"], torch.tensor(3.0).log())
