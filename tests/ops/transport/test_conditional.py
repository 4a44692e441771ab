"""Conditional transport: the specification against a dense statement, kernels by error budget."""

from __future__ import annotations

import pytest
import torch

from fedkernels.testing import LAYOUTS, error_budget, poisoned_empty
from fedkernels.transport import reference
from tests.ops.kit import BACKENDS, CPU, DTYPES, assert_same_bits, needs_extension
from tests.ops.transport.conditional import COSTS, LOGITS, MODES, OUTPUTS, call

# (B, N, M, D): one of each; below, at and above a vector, a panel, a block of 48 rows, a chunk of
# 128 columns; more columns than rows (the sides change places); several stripes of 512 rows; D
# beyond two runs of a dot. Small ones are many: the largest of a few roundings measures nothing.
SIZES = [
    (64, 1, 1, 3),
    (64, 3, 5, 7),
    (64, 1, 9, 4),
    (64, 9, 1, 4),
    (4, 48, 16, 16),
    (4, 49, 17, 33),
    (3, 100, 10, 64),
    (2, 97, 129, 20),
    (4, 5, 300, 12),
    (1, 1100, 40, 24),
    (16, 20, 7, 600),
]


def assert_right(c, backend, note=""):
    """Within the error budget, plus what the largest logit's roundings do to its exponential.

    The exponential of a logit s is off by as many roundings as the terms of s are large, in
    whatever order a dot is summed. The specification's own error measures that badly where there
    are few pairs, so `size` roundings are added (float64: through the length of the sum). Rows are
    no measure: those of a gradient are sums of both signs, an lse may be near 0.
    """
    actual = c.results(backend=backend)
    near = actual if backend == "reference" else c.results(backend="reference")
    exact = c.exact()
    N, M, D = (*c.tensors["x"].shape[1:2], *c.tensors["y"].shape[1:])
    size = logit_size(c) + cost_size(c)
    assert actual.keys() == exact.keys()
    for name, result in actual.items():
        result, base, true = (t.reshape(1, -1) for t in (result, near[name], exact[name]))
        length = 4 * (D + max(N, M)) * 8 + (4 * size) ** 2
        report = error_budget(result, base, true, name=name, sum_length=int(length))
        assert report.problem is None, (note, report.message())
        half = torch.finfo(result.dtype).bits == 16  # rounded once, from float32
        more = 0.0 if half else size * float(torch.finfo(result.dtype).eps)
        sizes = {"max": abs(true).max(), "rms": (true * true).mean() ** 0.5}
        for measure in report.measures:
            allowed = measure.allowed + more * float(sizes.get(measure.name, 1.0))
            assert measure.error <= allowed, (note, measure.name, report.message())


def cost_size(c):
    """The terms of a squared distance, |x|^2 + |y|^2, against the spread of the distances.

    Gradients to masses and logits see costs less their mean: an expansion that cancels costs them
    as many roundings.
    """
    if c.options["cost"] != "sqeuclidean" or 0 in c.tensors["x"].shape + c.tensors["y"].shape:
        return 0.0
    x, y = (c.tensors[n].double() for n in "xy")
    squares = torch.cdist(x, y).square()
    terms = x.square().sum(-1).amax() + y.square().sum(-1).amax()
    spread = squares.amax() - squares.amin()
    return float(terms / spread) if spread > 0 else 0.0


def logit_size(c):
    """The largest term of a logit before terms cancel: |x| |y|, 1 or |x|^2 + |y|^2, over t."""
    lengths = [c.tensors[n].double().norm(dim=-1).amax().item() for n in "xy"]
    kind = c.options["logits"]
    if kind == "neg_cost" and c.options["cost"] == "sqeuclidean":
        term = lengths[0] ** 2 + lengths[1] ** 2
    else:
        term = lengths[0] * lengths[1] if kind == "dot" else 1.0
    return term / c.options["temperature"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masses", ["", "pq", "p", "q"])
def test_the_reference_is_the_dense_statement(mode, masses):
    c = call(2, 7, 4, 5, cost=mode[0], logits=mode[1], masses=masses, dtype=torch.float64)
    for name, value in c.results(backend="reference").items():
        torch.testing.assert_close(
            value, torch.from_numpy(c.exact()[name].astype("float64")), rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masses", ["", "pq"])
def test_the_written_backward_is_autograds(mode, masses):
    c = call(2, 7, 4, 5, cost=mode[0], logits=mode[1], masses=masses, dtype=torch.float64)
    numbers = (COSTS.index(mode[0]), LOGITS.index(mode[1]), c.options["temperature"])
    t = c.tensors
    inputs = (t["x"], t["y"], t["p"], t["q"])
    outputs = reference.conditional_transport_forward(*inputs, *numbers)
    upstream = c.upstream(list(outputs))
    need = 15 if masses else 3
    written = reference.conditional_transport_backward(*inputs, *outputs, *upstream, *numbers, need)
    expected = c.results(backend="reference")
    for name, value in zip(("dx", "dy", "dp", "dq"), written, strict=True):
        if name in expected:
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13)
        else:
            assert value.numel() == 0


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@needs_extension
def test_float32_and_float64_within_budget(mode, size):
    for dtype, masses in ((torch.float32, "pq"), (torch.float64, "")):
        c = call(*size, cost=mode[0], logits=mode[1], masses=masses, dtype=dtype)
        assert_right(c, "cpu", f"{dtype} {masses}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_every_dtype(mode, dtype, backend):
    c = call(8, 33, 9, 17, cost=mode[0], logits=mode[1], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in c.results(backend=backend).items():
        assert value.dtype == (dtype if name.startswith("d") else wide), name
    assert_right(c, backend)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spread", [60.0, 400.0])
@needs_extension
def test_logits_too_wide_for_a_shared_exponential(mode, spread):
    for size in ((1, 60, 20, 16), (1, 20, 60, 16)):
        c = call(*size, cost=mode[0], logits=mode[1], spread=spread, seed=3, dtype=torch.float64)
        assert_right(c, "cpu")
    c = call(1, 60, 20, 16, cost=mode[0], logits=mode[1], spread=spread, seed=3)
    actual, expected = c.results(backend="cpu"), c.to(torch.float64).results(backend="reference")
    for name, value in actual.items():
        # A logit of 0.5 spread carries 0.5 spread roundings (of a dot: sqrt(D)) into its softmax,
        # and a gradient multiplies the softmax' error by what the logits span again.
        tolerance = 2**-23 * 4 * spread * (spread if name.startswith("d") else 1)
        scale = expected[name].abs().max()
        assert (value - expected[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("layout", LAYOUTS)
@needs_extension
def test_layouts(layout):
    c = call(2, 50, 20, 16, layout=layout)
    flat = call(2, 50, 20, 16, layout=layout)
    for name, value in flat.tensors.items():
        flat.tensors[name] = value.contiguous()
    assert_same_bits(c.results(backend="cpu"), flat.results(backend="cpu"))


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@needs_extension
def test_distances_far_from_the_origin_are_faithful(mode):
    """Spread 1 around 1000: by the expansion alone every cost would be noise of some 0.1."""
    c = call(1, 60, 20, 16, cost="sqeuclidean", logits=mode[1], offset=1000.0)
    if mode[1] == "dot":
        c.options["temperature"] = 16e3  # what float32 can tell apart of dots of 16e6
    actual = c.results(backend="cpu")
    expected = c.exact()
    for name in ("row_cost", "col_cost"):
        error = abs(actual[name].double().numpy() - expected[name]).max()
        # Logits: 16e6 / 16e3 with one rounding each (of cosines: 1), the cost spans about 50.
        assert error <= 50 * 8 * 2**-24 * (1000 if mode[1] == "dot" else 60)


@pytest.mark.parametrize("backend", [CPU])
def test_uniform_masses_are_none(backend):
    c = call(1, 64, 16, 8, masses="")
    p, q = torch.full((1, 64), 1 / 64), torch.full((1, 16), 1 / 16)
    given = type(c)({**c.tensors, "p": p, "q": q}, c.options)
    for name in OUTPUTS:
        a, b = getattr(c.run(backend=backend), name), getattr(given.run(backend=backend), name)
        assert torch.equal(a, b), name  # powers of two: exact


@pytest.mark.parametrize("backend", BACKENDS)
def test_fields_are_their_formulas(backend):
    c = call(3, 20, 11, 6)
    t = c.tensors
    r = c.run(backend=backend, rho=0.3)
    torch.testing.assert_close(r.forward, (t["p"] * r.row_cost).sum(1))
    torch.testing.assert_close(r.backward, (t["q"] * r.col_cost).sum(1))
    torch.testing.assert_close(r.value, 0.3 * r.forward + 0.7 * r.backward)
    single = conditional_single(c, backend)
    for name, value in single.items():
        torch.testing.assert_close(value, getattr(c.run(backend=backend), name)[1], msg=name)


def conditional_single(c, backend):
    """The second problem of the batch without a leading dimension."""
    one = type(c)({n: t[1] for n, t in c.tensors.items()}, c.options)
    found = one.run(backend=backend)
    assert found.value.shape == () and found.row_cost.shape == (20,)
    return {name: getattr(found, name) for name in (*OUTPUTS, "value")}


@needs_extension
def test_nobody_reads_what_nobody_wrote():
    for size in ((2, 50, 20, 10), (1, 3, 140, 5), (1, 1100, 9, 3)):
        for mode in MODES:
            c = call(*size, cost=mode[0], logits=mode[1])
            clean = c.results(backend="cpu")
            with poisoned_empty():
                poisoned = c.results(backend="cpu")
            assert_same_bits(poisoned, clean, (size, mode))
