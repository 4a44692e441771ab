"""Conditional transport at its edges: zeros, equal points, NaN, empty sides, masses, threads."""

from __future__ import annotations

import pytest
import torch

from fedkernels import conditional_transport
from fedkernels.testing import random_tensor
from fedkernels.transport import ops
from tests.ops.kit import BACKENDS, assert_same_bits, needs_extension, with_threads
from tests.ops.transport.conditional import COSTS, FIELDS, LOGITS, MODES, OUTPUTS, TENSORS, call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [1, 5, 16, 128, 300])
@needs_extension
def test_the_cost_of_equal_points_is_exactly_zero(D, dtype):
    x = random_tensor((1, 40, D), dtype=dtype, seed=1)
    for cost in COSTS:
        for i in range(0, 40, 7):
            # One column: the expected cost of a row is the cost itself.
            r = conditional_transport(x, x[:, i : i + 1], cost=cost, backend="cpu")
            assert r.row_cost[0, i] == 0, (cost, i)
            assert bool((r.row_cost >= 0).all()) or cost == "cosine"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logits", LOGITS)
def test_zero_vectors_cost_one_and_pull_nothing(logits, backend):
    c = call(1, 12, 5, 8, logits=logits)
    c.tensors["x"][0, 3] = 0
    c.tensors["y"][0, 2] = 0
    c.tensors["x"][0, 4] = 1e-30  # below the smallest normal number squared: zero too
    t = c.train("x", "y")
    r = t.run(backend=backend)
    assert r.row_cost[0, 3] == 1
    (r.row_cost.sum() + r.col_cost.sum()).backward()
    dx, dy = t.tensors["x"].grad, t.tensors["y"].grad
    assert bool(dx.isfinite().all()) and bool(dy.isfinite().all())
    if logits != "dot":
        assert r.row_cost[0, 4] == 1
        assert not dx[0, 3].any() and not dy[0, 2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_a_nan_row_is_nan_alone(mode, backend):
    for N, M in ((60, 10), (10, 60)):
        c = call(1, N, M, 8, cost=mode[0], logits=mode[1])
        clean = c.run(backend=backend)
        c.tensors["x"][0, 7] = torch.nan
        dirty = c.run(backend=backend)
        others = torch.arange(N) != 7
        for name in ("row_cost", "row_lse"):
            value = getattr(dirty, name)[0]
            assert bool(value[7].isnan())
            # Elsewhere nothing but the way in which exponentials are shared may change.
            torch.testing.assert_close(value[others], getattr(clean, name)[0][others])
        for name in ("col_cost", "col_lse"):
            assert bool(getattr(dirty, name).isnan().all())
        assert bool(dirty.value.isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_by_a_nan_row_that_the_loss_leaves_out(backend):
    c = call(1, 60, 10, 8).train("x")
    with torch.no_grad():
        c.tensors["x"][0, 7] = torch.nan
    row_cost = c.run(backend=backend).row_cost[0]
    others = torch.arange(60) != 7
    (dx,) = torch.autograd.grad(row_cost[others].sum(), c.tensors["x"])
    assert bool(dx[0, others].isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("N", "M"), [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("cost", COSTS)
def test_an_empty_side(N, M, cost, backend):
    for B in (0, 2):
        c = call(B, N, M, 3, cost=cost).train()
        r = c.run(backend=backend)
        assert not r.value.any() and not r.row_cost.any() and not r.col_cost.any()
        assert bool((r.row_lse == -torch.inf).all()) and bool((r.col_lse == -torch.inf).all())
        grads = torch.autograd.grad(r.value.sum() + r.row_cost.sum(), list(c.tensors.values()))
        assert not any(g.any() for g in grads[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_features(backend):
    c = call(1, 6, 3, 0)
    r = c.run(backend=backend)
    assert bool((r.row_cost == 1).all())
    torch.testing.assert_close(r.row_lse, torch.zeros(1, 6), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_masses_of_zero(mode, backend):
    """A point without mass is as good as absent for the other side; its gradient is the limit."""
    full = call(1, 30, 12, 8, cost=mode[0], logits=mode[1], dtype=torch.float64)
    full.tensors["p"][0, ::3] = 0
    full.tensors["q"][0, 5] = 0
    r = full.run(backend=backend)
    kept = {"x": torch.arange(30) % 3 != 0, "y": torch.arange(12) != 5}
    less = {n: full.tensors[n][:, kept["x" if n in "xp" else "y"]] for n in TENSORS}
    expected = type(full)(less, full.options).run(backend="reference")
    if mode[0] == "cosine":  # squared distances are formed around the centre of all y
        torch.testing.assert_close(r.row_cost[:, kept["x"]], expected.row_cost)
    torch.testing.assert_close(r.value, expected.value)

    grads = full.results(backend=backend)
    near = type(full)({**full.tensors}, full.options)
    near.tensors["p"] = full.tensors["p"] + 1e-12
    near.tensors["q"] = full.tensors["q"] + 1e-12
    limit = near.results(backend="reference")
    for name in ("dp", "dq", "dx", "dy"):
        assert bool(grads[name].isfinite().all())
        torch.testing.assert_close(grads[name], limit[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_side_without_mass(backend):
    c = call(1, 9, 4, 3).train()
    with torch.no_grad():
        c.tensors["q"].zero_()
    r = c.run(backend=backend)
    assert not r.row_cost.any() and bool((r.row_lse == -torch.inf).all())
    assert bool(r.col_cost.isfinite().all())
    grads = torch.autograd.grad(r.row_cost.sum() + r.col_cost.sum(), list(c.tensors.values()))
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_mass_is_nan(backend):
    c = call(1, 9, 4, 3)
    c.tensors["q"][0, 1] = -0.5
    r = c.run(backend=backend)
    assert bool(r.row_cost.isnan().all()) and bool(r.col_cost.isfinite().all())


@needs_extension
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_the_same_bits_for_every_number_of_threads(mode):
    for size in ((1, 1700, 40, 12), (1, 30, 700, 12), (5, 70, 9, 12)):
        c = call(*size, cost=mode[0], logits=mode[1])
        once = with_threads(1, lambda c=c: c.results(backend="cpu"))
        for threads in (2, 3, 8):
            again = with_threads(threads, lambda c=c: c.results(backend="cpu"))
            assert_same_bits(again, once, (size, threads))


@needs_extension
def test_a_problems_bits_are_its_own():
    c = call(4, 70, 20, 9)
    together = c.results(backend="cpu")
    for b in range(4):
        alone = type(c)({n: t[b : b + 1] for n, t in c.tensors.items()}, c.options)
        found = alone.run(backend="cpu")
        for name in OUTPUTS:
            assert torch.equal(getattr(found, name)[0], together[name][b]), name


@needs_extension
@pytest.mark.parametrize(
    ("size", "masses"), [((1, 2300, 2200, 128), "pq"), ((1, 700, 650, 512), "p")]
)
def test_wide_sides_are_cut_into_sections(size, masses):
    # (depth, columns) of 1 MiB a section: 2048 columns of 128 features, 512 of 512.
    c = call(*size, masses=masses)
    actual, expected = c.results(backend="cpu"), c.to(torch.float64).results(backend="reference")
    for name, value in actual.items():
        scale = expected[name].abs().max()
        assert (value - expected[name]).abs().max() <= 64 * 2**-23 * scale, name


@needs_extension
def test_what_is_not_needed_is_not_computed():
    c = call(1, 40, 10, 6)
    t = c.tensors
    op = ops.primitives("cpu")
    numbers = (0, 0, 2.0)
    inputs = (t["x"], t["y"], t["p"], t["q"])
    outputs = op.conditional_transport_forward(*inputs, *numbers)
    upstream = c.upstream(list(outputs))
    everything = op.conditional_transport_backward(*inputs, *outputs, *upstream, *numbers, 15)
    for need in range(16):
        found = op.conditional_transport_backward(*inputs, *outputs, *upstream, *numbers, need)
        for bit, (some, whole) in enumerate(zip(found, everything, strict=True)):
            if need >> bit & 1:
                assert torch.equal(some, whole), (need, bit)
            else:
                assert some.numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fields_of_an_unbatched_call(backend):
    c = call(1, 6, 4, 3)
    one = type(c)({n: t[0] for n, t in c.tensors.items()}, c.options)
    r, batched = one.run(backend=backend), c.run(backend=backend)
    for name in FIELDS:
        assert torch.equal(getattr(r, name), getattr(batched, name)[0]), name
