"""The CUDA kernels of class sums on the host, against the specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkernels.prototype.reference.class_sum import class_sum
from fedkernels.testing import assert_within_budget
from tests.cuda_host.build import ORDERS
from tests.cuda_host.prototypes import SOURCE, Kernels


@pytest.fixture
def kernels(programs):
    return lambda variant="contracted", **options: Kernels(programs(SOURCE, variant), options)


def problem(N: int, K: int, D: int, hard: bool, dtype=torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(N + K)
    x = torch.randn(N, D, generator=generator).to(dtype)
    labels = torch.randint(0, K, (N,), generator=generator)
    if not hard:
        labels = torch.rand(N, K, generator=generator)
    return x, labels, torch.rand(N, generator=generator) + 0.1


def check(kernels: Kernels, x: Tensor, labels: Tensor, weight: Tensor | None, K: int) -> None:
    found = kernels.class_sum(x, labels, weight, K)
    known = class_sum(x, labels, weight, K)
    wide = [t.double() if t is not None and t.is_floating_point() else t for t in (labels, weight)]
    exact = class_sum(x.double(), *wide, K)
    for name, a, b, c in zip(("sum", "total", "count", "bad"), found, known, exact, strict=True):
        if a.dtype == torch.int64:
            assert torch.equal(a, b), name
        else:
            assert_within_budget(a.reshape(1, -1), b.reshape(1, -1), c.reshape(1, -1), name=name)


@pytest.mark.parametrize("hard", [True, False], ids=["labels", "shares"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (129, 33, 130), (300, 3, 20), (64, 65, 32), (0, 3, 4), (5, 2, 0)], ids=str
)
def test_sums(kernels, sizes, hard):
    N, K, D = sizes
    x, labels, weight = problem(N, K, D, hard)
    check(kernels(), x, labels, None, K)
    check(kernels(), x, labels, weight, K)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hard", [True, False], ids=["labels", "shares"])
def test_half_types(kernels, hard, dtype):
    x, labels, weight = problem(70, 5, 18, hard, dtype)
    check(kernels(), x, labels, weight, 5)


@pytest.mark.parametrize("hard", [True, False], ids=["labels", "shares"])
def test_rows_without_a_part(kernels, hard):
    x, labels, weight = problem(200, 4, 18, hard)
    weight[[3, 150]] = 0
    weight[7], weight[160] = -1, math.nan
    x[[3, 7, 150, 160]] = math.nan
    if hard:
        labels[[11, 190]] = torch.tensor([4, -1])
        x[11] = math.nan
    check(kernels(), x, labels, weight, 4)


def test_stripes_follow_from_the_shape(kernels):
    stripes = torch.zeros(1, dtype=torch.int64)
    for sizes, expected in (
        ((0, 3, 4), 0), ((100, 3, 4), 1), ((65536, 100, 256), 81), ((10**6, 10, 64), 264),
        ((65536, 10**4, 256), 1), ((10**7, 1000, 512), 16),
    ):  # fmt: skip
        kernels().program.call("class_sum_stripes", *sizes, stripes)
        assert stripes.item() == expected, sizes


@pytest.mark.parametrize("hard", [True, False], ids=["labels", "shares"])
def test_the_same_bits_in_every_order(kernels, hard):
    x, labels, weight = problem(600, 3, 18, hard)
    first = kernels().class_sum(x, labels, weight, 3)
    for order in ORDERS[1:]:
        again = kernels(order=order).class_sum(x, labels, weight, 3)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_memory_under_the_sanitizers(kernels):
    for hard in (True, False):
        x, labels, weight = problem(70, 35, 19, hard, torch.float16)
        check(kernels("sanitized"), x, labels, weight, 35)
