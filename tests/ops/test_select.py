"""select_middle: which entries, in which slots, against a statement in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels import select_middle
from fedkernels.testing import SELECT_MIDDLE_CASES, random_tensor, select_middle_inputs
from fedkernels.testing.check.compare import selection_is_exact
from tests.ops.kit import BACKENDS, DTYPES, with_threads


def stated(scores: Tensor, rank: int, previous: Tensor | None = None) -> Tensor:
    """One sort key an entry: NaN last, then by value, then by index; and slots by hand."""
    count = rank * rank
    rows = []
    flat = scores.double().reshape(-1, scores.shape[-1] ** 2).tolist()
    before = None if previous is None else previous.reshape(-1, count).tolist()
    for m, values in enumerate(flat):
        order = sorted(
            range(len(values)),
            key=lambda i, v=values: (math.isnan(v[i]), 0.0 if math.isnan(v[i]) else -v[i], i),
        )
        chosen = sorted(order[:count])
        if before is not None:
            newcomers = [i for i in chosen if i not in before[m]]
            chosen = [i if i in chosen else newcomers.pop(0) for i in before[m]]
        rows.append(chosen)
    result = torch.tensor(rows, dtype=torch.int64)
    return result.reshape(*scores.shape[:-2], count)


def check(scores: Tensor, rank: int, backend: str, previous: Tensor | None = None) -> Tensor:
    middle = random_tensor(scores.shape, dtype=scores.dtype, seed=9)
    T, index = select_middle(middle, scores, rank, previous=previous, backend=backend)
    expected = stated(scores, rank, previous)
    assert torch.equal(index, expected)
    assert torch.equal(T.flatten(-2), middle.flatten(-2).gather(-1, expected))
    assert T.shape == (*scores.shape[:-2], rank, rank)
    return index


def scores_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 1) -> Tensor:
    s = random_tensor(shape, dtype=torch.float64, seed=seed)
    pick = random_tensor(shape, dtype=torch.float64, seed=seed + 50)
    if kind == "rounded":
        s = s.round()
    elif kind == "equal":
        s = torch.full_like(s, 0.25)
    elif kind == "zeros of both signs":
        s = torch.where(pick > 0, 0.0, -0.0).double()
    elif kind == "zeros among numbers":
        s = torch.where(pick.abs() < 0.7, torch.where(s > 0, 0.0, -0.0).double(), s)
    elif kind == "infinite":
        s = torch.where(pick > 0.3, -torch.inf, s)
        s = torch.where(pick < -1.0, torch.inf, s)
    elif kind == "nan":
        s = torch.where(pick > -0.2, torch.nan, s)
        s = torch.where(pick < -1.0, -torch.inf, s)
    elif kind == "nothing but nan":
        s = torch.full_like(s, torch.nan)
    elif kind == "nothing but -inf and nan":
        s = torch.where(pick > 0, torch.nan, -torch.inf).double()
    elif kind == "tiny":  # subnormal in float32: still ordered, no flush to zero
        s = s * 1e-42
    return s.to(dtype)


KINDS = (
    "normal", "rounded", "equal", "zeros of both signs", "zeros among numbers", "infinite", "nan",
    "nothing but nan", "nothing but -inf and nan", "tiny",
)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_of_small_matrices(kind, dtype, backend):
    for size in (1, 2, 5, 9):
        scores = scores_of(kind, (2, 3, size, size), dtype)
        for rank in range(1, size + 1):
            check(scores, rank, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_large_matrices(kind, backend):
    """1024 entries and more take the sampled threshold (select.h)."""
    for dtype, size, ranks in (
        (torch.float32, 33, (1, 8, 32, 33)),
        (torch.float32, 64, (1, 5, 31, 63)),
        (torch.bfloat16, 40, (2, 20, 39)),
        (torch.float64, 40, (2, 20, 39)),
    ):
        scores = scores_of(kind, (2, size, size), dtype)
        for rank in ranks:
            check(scores, rank, backend)


def adversarial(name: str, size: int) -> Tensor:
    """Scores whose every-so-manieth entry, which the sample reads, lies about the rest."""
    n = size * size
    i = torch.arange(n)
    sampled = torch.zeros(n, dtype=torch.bool)
    sampled[torch.arange(256) * n // 256] = True
    noise = random_tensor((n,), seed=3)
    values = {
        "sample high": torch.where(sampled, 100.0 + noise, noise),
        "sample low": torch.where(sampled, -100.0 + noise, noise),
        "sample equal, rest above": torch.where(sampled, torch.tensor(0.0), noise.abs() + 1),
        "sample equal, rest below": torch.where(sampled, torch.tensor(0.0), -noise.abs() - 1),
        "sample nan": torch.where(sampled, torch.tensor(torch.nan), noise),
        "sample -inf": torch.where(sampled, torch.tensor(-torch.inf), noise),
        "sample inf": torch.where(sampled, torch.tensor(torch.inf), noise),
        "sample half": torch.where(sampled & (i % 2 == 0), torch.tensor(50.0), noise),
        "ascending": i.float(),
        "descending": -i.float(),
        "two values": (i % 2).float(),
        "one apart": torch.where(i == n - 1, torch.tensor(1.0), torch.tensor(0.0)),
    }[name]
    return values.reshape(size, size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    [
        "sample high", "sample low", "sample equal, rest above", "sample equal, rest below",
        "sample nan", "sample -inf", "sample inf", "sample half", "ascending", "descending",
        "two values", "one apart",
    ],
)  # fmt: skip
def test_a_sample_that_lies_about_the_rest(name, backend):
    for size in (32, 48, 65):
        scores = adversarial(name, size)
        for rank in (1, 2, 8, 16, size // 2, size - 1):
            check(scores, rank, backend)
            check(scores.double(), rank, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SELECT_MIDDLE_CASES, ids=lambda case: case.name)
def test_named_cases_with_gradients(case, dtype, backend):
    inputs = select_middle_inputs(case, dtype=dtype)
    found = selection_is_exact(inputs["middle"], inputs["scores"], case.rank, backend=backend)
    assert found.passed, found.detail


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4, 4), (4, 4), (2, 3, 2, 4, 4)])
def test_any_number_of_matrices(shape, backend):
    check(random_tensor(shape, seed=4), 2, backend) if math.prod(shape) else None
    middle = random_tensor(shape, seed=5)
    T, index = select_middle(middle, middle, 2, backend=backend)
    assert T.shape == (*shape[:-2], 2, 2) and index.shape == (*shape[:-2], 4)
    assert index.dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["normal", "rounded", "nan", "equal"])
def test_previous_keeps_slots_and_fills_the_freed_ones_in_order(kind, backend):
    for size, rank in ((2, 1), (5, 2), (9, 6), (40, 20)):
        first = scores_of(kind, (2, 2, size, size), torch.float32, seed=1)
        index = check(first, rank, backend)
        for step in range(3):  # three rounds: the slots are no longer ascending
            moved = first + 0.4 * random_tensor(first.shape, seed=20 + step)
            index = check(moved, rank, backend, previous=index)
        far = random_tensor(first.shape, seed=90)
        check(far, rank, backend, previous=index)
        shuffled = index.flip(-1)
        assert torch.equal(check(first, rank, backend, previous=shuffled).sort(-1).values,
                           stated(first, rank))  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_previous_that_stays_is_returned_as_it_is(backend):
    scores = random_tensor((3, 6, 6), seed=1)
    _, index = select_middle(scores, scores, 3, backend=backend)
    order = torch.randperm(9)
    shuffled = index[:, order]
    T, again = select_middle(scores, scores, 3, previous=shuffled, backend=backend)
    assert torch.equal(again, shuffled)
    assert torch.equal(T.flatten(1), scores.flatten(1).gather(1, shuffled))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_that_previous_names_twice_keeps_its_first_slot(backend):
    scores = torch.tensor([[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [3.0, 2.0, 1.0]])
    for previous, expected in (
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([8, 1, 8, 1], [0, 1, 2, 3]),
        ([3, 7, 3, 0], [3, 1, 2, 0]),
    ):
        _, index = select_middle(
            scores, scores, 2, previous=torch.tensor(previous), backend=backend
        )
        assert index.tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["strided", "transposed", "padded", "expanded"])
def test_any_layout(layout, backend):
    scores = random_tensor((3, 9, 9), seed=1, layout=layout)
    middle = random_tensor((3, 9, 9), seed=2, layout=layout)
    T, index = select_middle(middle, scores, 4, backend=backend)
    expected = stated(scores.contiguous(), 4)
    assert torch.equal(index, expected)
    assert torch.equal(T.flatten(1), middle.reshape(3, 81).gather(1, expected))
    previous = index.flip(-1).T.contiguous().T  # strided
    _, again = select_middle(middle, scores, 4, previous=previous, backend=backend)
    assert torch.equal(again, previous)
    T, _ = select_middle(middle, None, 4, index=previous, backend=backend)
    assert torch.equal(T.flatten(1), middle.reshape(3, 81).gather(1, previous))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_index_for_every_number_of_threads(backend):
    scores = random_tensor((40, 33, 33), seed=1).round(decimals=1)
    before = stated(random_tensor((40, 33, 33), seed=2), 6)
    runs = [
        with_threads(n, lambda: select_middle(scores, scores, 6, previous=before, backend=backend))
        for n in (1, 2, 3)
    ]
    for T, index in runs[1:]:
        assert torch.equal(T, runs[0][0]) and torch.equal(index, runs[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_ordered_in_their_own_dtype(backend):
    """Scores and middle may differ in dtype; float64 scores are not rounded to order them."""
    scores = torch.ones(1, 4, 4, dtype=torch.float64)
    scores[0, 3, 3] += 1e-12
    middle = random_tensor((1, 4, 4), dtype=torch.float16)
    T, index = select_middle(middle, scores, 1, backend=backend)
    assert index.item() == 15 and T.dtype == torch.float16
