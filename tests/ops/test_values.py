"""Forward and gradients of every backend within budget: dtypes, sizes, layouts, options."""

from __future__ import annotations

import pytest
import torch

from fedkernels import triple_lora_delta, triple_lora_linear
from fedkernels.testing import (
    LAYOUTS,
    ROWS,
    TRIPLE_LORA_CASES,
    random_tensor,
    triple_lora_inputs,
    with_layout,
)
from fedkernels.testing.check.compare import within_budget
from tests.ops.kit import BACKENDS, DTYPES, TENSORS, Call, assert_same_bits, call

HALVES = (torch.bfloat16, torch.float16)


def check(c: Call, backend: str, *, train=TENSORS, delta: bool = False) -> None:
    """All of `c`'s results, gradients of `train` among them, within budget."""
    c = c.train(*train)
    tensors = dict(c.tensors)
    if delta:
        shape = (*tensors["x"].shape[:-1], c.options.get("out_features") or len(tensors["weight"]))
        del tensors["weight"], tensors["bias"]
    else:
        shape = (*tensors["x"].shape[:-1], tensors["weight"].shape[0])
    grad = random_tensor(shape, dtype=tensors["x"].dtype, seed=91)
    function = triple_lora_delta if delta else triple_lora_linear
    found = within_budget(function, tensors, c.options, grad, backend=backend)
    assert found.passed, found.detail


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRIPLE_LORA_CASES, ids=lambda case: case.name)
def test_named_cases(case, dtype, backend):
    arguments = triple_lora_inputs(case, dtype=dtype)
    tensors = {name: arguments.pop(name) for name in TENSORS}
    check(Call(tensors, arguments), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, {"plain": True}, {"residual": False}])
def test_float32_adapters_under_half_inputs(dtype, options, backend):
    c = call((37,), 72, 56, 8, dtype=dtype, adapters=torch.float32, **options)
    check(c, backend)
    results = c.train("x", "A", "T", "B").results(backend=backend)
    assert results["A"].dtype == results["B"].dtype == torch.float32
    assert results["x"].dtype == results["y"].dtype == dtype


# Rows around a tile of 6 and 12, a block of 48 and 192, and the limits of the own product.
SIZES = [(rows, 24, 24, 3) for rows in (*ROWS, 5, 6, 11, 12, 13, 15, 16, 47, 48, 49, 191, 193)]
SIZES += [(70, 80, 72, 4), (15, 80, 72, 4), (16, 80, 72, 4), (200, 33, 129, 1), (60, 520, 16, 6)]
SIZES += [(50, 1300, 6, 3), (9, 6, 1300, 3), (5, 512, 512, 17)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_around_the_limits_of_tiles_and_blocks(size, dtype, backend):
    rows, d_in, d_out, rank = size
    check(call((rows,), d_in, d_out, rank, dtype=dtype), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", ["rows", "d_in", "d_out", "rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dimension_may_be_empty(empty, dtype, backend):
    sizes = {"rows": 9, "d_in": 10, "d_out": 12, "rank": 3, empty: 0}
    c = call((sizes["rows"],), sizes["d_in"], sizes["d_out"], sizes["rank"], dtype=dtype)
    check(c, backend)
    check(c, backend, delta=True)
    results = c.train(*TENSORS).results(backend=backend)
    if empty == "rows":
        for name in ("weight", "A", "T", "B", "bias"):
            assert not results[name].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["x", "weight", "A", "T", "B", "bias"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_any_layout_of_any_tensor_changes_nothing(layout, name, backend):
    for dtype in (torch.float32, torch.float16):
        c = call((20,), 40, 24, 5, dtype=dtype)
        c.tensors[name] = with_layout(c.tensors[name], layout)
        check(c, backend)
        if backend == "reference":  # the platform's product sums another layout in another order
            continue
        plain = Call({n: t.contiguous().clone() for n, t in c.tensors.items()}, c.options)
        actual = c.train("x", "A", "T", "B", "bias").results(backend=backend)
        assert_same_bits(actual, plain.train(*TENSORS).results(backend=backend), layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_incoming_gradient_and_of_the_base(layout, backend):
    c = call((20,), dtype=torch.bfloat16).train(*TENSORS)
    grad = random_tensor((20, 24), dtype=torch.bfloat16, layout=layout)
    same = c.results(grad.contiguous().clone(), backend=backend)
    assert_same_bits(c.results(grad, backend=backend), same)
    base = random_tensor((20, 24), dtype=torch.bfloat16, layout=layout)
    t = c.tensors
    sums = [
        triple_lora_delta(t["x"], t["A"], t["T"], t["B"], base=b, backend=backend)
        for b in (base, base.contiguous().clone())
    ]
    assert torch.equal(*sums)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [(), (1,), (3, 4), (2, 3, 2), (1, 1, 1, 12), (3, 0, 2)])
def test_any_leading_shape(leading, backend):
    for dtype in (torch.float32, torch.bfloat16):
        c = call(leading, dtype=dtype).train(*TENSORS)
        flat = c.train(*TENSORS)
        flat.tensors["x"] = c.tensors["x"].detach().reshape(-1, 40).requires_grad_()
        grad = random_tensor((*leading, 24), dtype=dtype, seed=2)
        actual = c.results(grad, backend=backend)
        expected = flat.results(grad.reshape(-1, 24), backend=backend)
        assert actual["y"].shape == (*leading, 24)
        assert actual["x"].shape == (*leading, 40)
        expected["y"], expected["x"] = (expected[n].reshape(actual[n].shape) for n in ("y", "x"))
        assert_same_bits(actual, expected, leading)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_blocks", [None, (), (0,), (6,), (0, 3, 6), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("out_blocks", [None, (), (4,), (0, 2)])
def test_block_sparse_factors(in_blocks, out_blocks, dtype, backend):
    """100 columns in blocks of 16 (the last holds 4), 70 rows (the last block holds 6)."""
    in_index = None if in_blocks is None else torch.tensor(in_blocks, dtype=torch.int64)
    out_index = None if out_blocks is None else torch.tensor(out_blocks, dtype=torch.int64)
    c = call(
        (19,), 100, 70, 4, dtype=dtype,
        a_width=None if in_blocks is None else sum(4 if b == 6 else 16 for b in in_blocks),
        b_width=None if out_blocks is None else sum(6 if b == 4 else 16 for b in out_blocks),
        in_index=in_index, out_index=out_index, block=16,
    )  # fmt: skip
    check(c, backend)
    c.options["out_features"] = 70
    check(c, backend, delta=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_an_index_over_all_blocks_is_the_dense_factor(sparse, backend):
    c = call((19,), 100, 70, 4, dtype=torch.float64, block=16).train(*TENSORS)
    both = {"in_index": torch.arange(7), "out_index": torch.arange(5)}
    dense, blocks = c.results(backend=backend), c.results(**both, backend=backend)
    for name, value in blocks.items():
        torch.testing.assert_close(value, dense[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.25, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(p, dtype, backend):
    options = {"dropout_p": p, "training": True}
    check(call((50,), 72, 56, 8, dtype=dtype, **options), backend)
    check(call((50,), 72, 96, 8, dtype=dtype, **options), backend)  # above the own product's limit
    blocks = {"in_index": torch.tensor([0, 4]), "block": 16}
    check(call((50,), 72, 56, 8, dtype=dtype, a_width=24, **blocks, **options), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", [False, True])
def test_delta(base, dtype, backend):
    for leading in ((), (21,), (2, 3)):
        c = call(leading, dtype=dtype).train("x", "A", "T", "B")
        tensors = {name: c.tensors[name] for name in ("x", "A", "T", "B")}
        grad = random_tensor((*leading, 24), dtype=dtype, seed=4)
        if base:
            held = random_tensor((*leading, 24), dtype=dtype, seed=3)
            tensors["base"] = held.clone().requires_grad_()
        found = within_budget(triple_lora_delta, tensors, c.options, grad, backend=backend)
        assert found.passed, found.detail
        if base:
            y = triple_lora_delta(**tensors, **c.options, backend=backend)
            (dbase,) = torch.autograd.grad(y, tensors["base"], grad)
            assert torch.equal(dbase, grad)
            assert torch.equal(tensors["base"], held), "base was written to"
            with torch.no_grad():
                triple_lora_delta(**tensors, **c.options, backend=backend)
            assert torch.equal(tensors["base"], held), "base was written to"


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_and_inputs_that_are_not_written(backend):
    c = call((20,)).train(*TENSORS)
    before = {n: t.detach().clone() for n, t in c.tensors.items()}
    y = c.y(backend=backend)
    grad = torch.randn_like(y)
    kept = grad.clone()
    leaves = list(c.tensors.values())
    first = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    second = torch.autograd.grad(y, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(grad, kept)
    assert all(torch.equal(t, before[n]) for n, t in c.tensors.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_inf_stay_in_their_row(dtype, backend):
    # 16 rows and 80 * 72 weights: half types run on the own product, float32 on the platform's.
    for sizes in ((40, 24), (80, 72)):
        c = call((20,), *sizes, dtype=dtype)
        clean = c.y(backend=backend)
        for value in (float("nan"), float("inf")):
            c.tensors["x"][3, 5] = value
            y = c.y(backend=backend)
            assert not y[3].isfinite().any()
            others = torch.arange(20) != 3
            assert torch.equal(y[others], clean[others])
