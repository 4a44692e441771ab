"""The CUDA kernels of conditional transport on the host, against the specification."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkernels.testing import assert_within_budget, error_budget
from fedkernels.transport.reference.conditional import (
    conditional_transport_backward,
    conditional_transport_forward,
)
from tests.cuda_host.build import ORDERS, Program

SOURCE = Path(__file__).parent / "kernels" / "conditional.cpp"
RESULTS = ("row_cost", "col_cost", "row_lse", "col_lse")
GRADIENTS = ("dx", "dy", "dp", "dq")
COSTS, LOGITS = ("cosine", "sqeuclidean"), ("dot", "cosine", "neg_cost")


@pytest.fixture
def program(programs):
    return lambda variant="contracted": programs(SOURCE, variant)


@dataclass(frozen=True)
class Problem:
    x: Tensor
    y: Tensor
    p: Tensor | None = None
    q: Tensor | None = None
    cost: int = 0
    logits: int = 0
    temperature: float = 0.7
    weights: tuple[Tensor, ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (*self.x.shape[:2], self.y.shape[1], self.x.shape[2])

    @property
    def mode(self) -> tuple[int, int, float]:
        return self.cost, self.logits, self.temperature

    def points(self, dtype: torch.dtype) -> list[Tensor | None]:
        return [None if t is None else t.to(dtype) for t in (self.x, self.y, self.p, self.q)]


def problem(B: int, N: int, M: int, D: int, cost: int = 0, logits: int = 0, **options) -> Problem:
    generator = torch.Generator().manual_seed(N + 3 * M)
    x, y = (torch.randn(B, count, D, generator=generator) / D**0.5 for count in (N, M))
    p, q = (torch.rand(B, count, generator=generator) + 0.1 for count in (N, M))
    weights = tuple(torch.randn(B, count, generator=generator) for count in (N, M, N, M))
    masses = (p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True))
    return replace(Problem(x, y, *masses, cost, logits, weights=weights), **options)


def scratch(program: Program, c: Problem, backward: bool) -> tuple[Tensor, list[int]]:
    layout = torch.zeros(4, dtype=torch.int64)
    program.call("conditional_scratch", *c.sizes, c.cost, int(backward), layout)
    memory = torch.full((int(layout[0]) + 256,), 255, dtype=torch.uint8)
    return memory[-memory.data_ptr() % 256 :][: int(layout[0])], layout[1:].tolist()


def forward(program: Program, c: Problem, **call) -> tuple[Tensor, ...]:
    B, N, M, _ = c.sizes
    found = tuple(torch.full((B, count), math.nan) for count in (N, M, N, M))
    memory, _ = scratch(program, c, False)
    program.call(
        "conditional_forward", c.x, c.y, c.p, c.q, *c.sizes, c.cost, c.logits, float(c.temperature),
        *found, memory, **call,
    )  # fmt: skip
    return found


def backward(
    program: Program, c: Problem, saved: tuple[Tensor, ...], need: int = 15, **call
) -> tuple[Tensor | None, ...]:
    B, N, M, D = c.sizes
    shapes = ((B, N, D), (B, M, D), (B, N), (B, M))
    found = tuple(
        torch.full(shape, math.nan) if need >> i & 1 else None for i, shape in enumerate(shapes)
    )
    memory, _ = scratch(program, c, True)
    program.call(
        "conditional_backward", c.x, c.y, c.p, c.q, *saved, *c.weights, *c.sizes, c.cost, c.logits,
        float(c.temperature), *found, memory, **call,
    )  # fmt: skip
    return found


def check(program: Program, c: Problem) -> None:
    found = forward(program, c)
    rounded, exact = (
        conditional_transport_forward(*c.points(dtype), *c.mode)
        for dtype in (torch.float32, torch.float64)
    )
    for name, mine, theirs, truth in zip(RESULTS, found, rounded, exact, strict=True):
        if name.endswith("cost"):
            assert_within_budget(mine, theirs, truth, name=name)
            continue
        # The logarithm of a sum is off by the relative error of the sum, however near 0 it is: two
        # units of the last place for each exponential (CUDA's exp2f), and the rounding of logits.
        assert torch.equal(mine.isinf(), truth.isinf())
        slack = 2**-23 * (4 + 2 * truth.nan_to_num(0, 0, 0).abs())
        off, known = (torch.where(t == truth, 0.0, (t - truth).abs()) for t in (mine, theirs))
        assert (off <= 2 * known.max() + slack).all(), (name, off.max())

    gradients = backward(program, c, found)
    rounded, exact = (
        conditional_transport_backward(
            *c.points(dtype), *(t.to(dtype) for t in saved), *(w.to(dtype) for w in c.weights),
            *c.mode, 15,
        )
        for dtype, saved in ((torch.float32, rounded), (torch.float64, exact))
    )  # fmt: skip
    # Both sides at once and without the row measure: a few sums with cancellation are a matter of
    # luck, of the reference too.
    for first in (0, 2):
        pairs = (
            torch.cat([t.reshape(-1) for t in group[first : first + 2]])
            for group in (gradients, rounded, exact)
        )
        report = error_budget(*pairs, name=f"{GRADIENTS[first]}, {GRADIENTS[first + 1]}")
        # Coarse: every exponential is off by the largest error that CUDA states, at once.
        assert report.used <= (2 if program.variant == "coarse" else 1), report.message()


@pytest.mark.parametrize("logits", range(3), ids=LOGITS)
@pytest.mark.parametrize("cost", range(2), ids=COSTS)
@pytest.mark.parametrize("variant", ["contracted", "coarse"])
def test_every_mode(program, variant, cost, logits):
    check(program(variant), problem(2, 21, 13, 19, cost, logits))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (64, 64, 16), (65, 3, 70), (3, 130, 17)], ids=str)
@pytest.mark.parametrize("mode", [(0, 0), (1, 2)], ids=str)
def test_sizes_around_a_tile(program, sizes, mode):
    check(program(), problem(1, *sizes, *mode))
    check(program(), problem(1, *sizes, *mode, p=None, q=None))


def test_a_short_side_is_summed_in_parts(program):
    c = problem(2, 200, 5, 24, 1, 0)
    _, (row_parts, column_parts, slots) = scratch(program(), c, True)
    assert (row_parts, column_parts, slots) == (1, 4, 2)
    check(program(), c)


def test_problems_beyond_the_scratch_go_in_rounds(program):
    layout = torch.zeros(4, dtype=torch.int64)
    program().call("conditional_scratch", 100, 16384, 100, 128, 0, 1, layout)
    size, rows, columns, slots = layout.tolist()
    assert (rows, columns) == (1, 132) and 0 < slots < 100
    assert size < 100 << 20
    # The same kernels with a scratch for one problem: the rounds of the launcher.
    c = problem(3, 70000, 1, 2, temperature=1.0)
    c = replace(c, weights=tuple(torch.ones_like(w) for w in c.weights))
    assert scratch(program(), c, True)[1][2] == 3


@pytest.mark.parametrize("mode", [(0, 1), (1, 0)], ids=str)
def test_bits_depend_on_the_problem_alone(program, mode):
    c = problem(3, 70, 9, 12, *mode)
    saved = forward(program(), c)
    together = (*saved, *backward(program(), c, saved))
    for order in ORDERS[1:]:
        again = forward(program(), c, order=order)
        again = (*again, *backward(program(), c, again, order=order))
        assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True)), order
    one = Problem(
        c.x[1:2].clone(), c.y[1:2].clone(), c.p[1:2].clone(), c.q[1:2].clone(), *c.mode,
        weights=tuple(w[1:2].clone() for w in c.weights),
    )  # fmt: skip
    single = forward(program(), one)
    single = (*single, *backward(program(), one, single))
    assert all(torch.equal(a[0], b[1]) for a, b in zip(single, together, strict=True))
    for need in (1, 2, 4, 8, 6):
        some = backward(program(), c, saved, need)
        for i in range(4):
            assert (some[i] is None) == (not need >> i & 1)
            assert some[i] is None or torch.equal(some[i], together[4 + i])


def test_a_bad_point_stays_with_its_pairs(program):
    c = problem(2, 20, 7, 6, 1, 2)
    before = forward(program(), c)
    c.x[0, 3, 2] = math.nan
    after = forward(program(), c)
    for name, old, new in zip(RESULTS, before, after, strict=True):
        assert torch.equal(old[1], new[1]), name
        if name.startswith("row"):
            kept = torch.arange(20) != 3
            assert torch.equal(old[0][kept], new[0][kept]) and new[0, 3].isnan(), name


def test_zero_vectors_and_zero_masses(program):
    for cost, logits in ((0, 0), (0, 1), (1, 0)):
        c = problem(2, 12, 9, 5, cost, logits)
        c.x[0, 2] = 0
        c.y[1, 4] = 0
        c.p[0, :2] = 0
        c.q[1, 5:] = 0
        check(program(), c)
    c.q[1] = 0
    c.weights[0][0, 3], c.weights[2][0, 3] = 0, 0
    check(program(), c)


@pytest.mark.parametrize("sizes", [(0, 4, 3), (4, 0, 3), (0, 0, 3)], ids=str)
def test_an_empty_side(program, sizes):
    for mode in ((0, 0), (1, 1)):
        c = problem(1, *sizes, *mode)
        found = forward(program(), c)
        expected = conditional_transport_forward(*c.points(torch.float32), *c.mode)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        for gradient in backward(program(), c, found):
            assert gradient is not None and gradient.count_nonzero() == 0


def test_memory_under_the_sanitizers(program):
    check(program("sanitized"), problem(2, 66, 5, 17, 1, 0))
