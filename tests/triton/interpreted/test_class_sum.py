"""Sums over the rows of classes, hard and soft, against the reference."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from tests.triton.interpreted.kit import compare_primitive, run, same_bits

MODULE = "fedkernels.prototype.triton.class_sum"  # its function hides it as an attribute


@pytest.fixture(params=[False, True], ids=["plain", "sorted"])
def order(request, monkeypatch):
    """Rows as they come, and by label."""
    if request.param:
        monkeypatch.setattr(sys.modules[MODULE], "SORTED_FROM", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_hard(weighted, dtype, order):
    x, labels = torch.randn(80, 5).to(dtype), torch.randint(0, 66, (80,))
    labels[[7, 9]] = torch.tensor([66, -1])
    weight = torch.rand(80) if weighted else None
    if weighted:
        weight[[20, 21, 22]] = torch.tensor([-1.0, math.nan, 0.0])
        x[22] = math.nan
    *_, bad = compare_primitive("class_sum", (x, labels, weight, 66))
    assert bad.tolist() == [7, 20 if weighted else -1]


@pytest.mark.parametrize("weighted", [False, True])
def test_soft(weighted):
    x, labels = torch.randn(70, 5), torch.rand(70, 66)
    weight = torch.rand(70) if weighted else None
    if weighted:
        weight[3], weight[4] = -1.0, 0.0
        x[4] = math.nan
    compare_primitive("class_sum", (x, labels, weight, 66))


SIZES = [(1, 1, 1), (0, 3, 4), (5, 2, 0), (100, 3, 65)]


@pytest.mark.parametrize(("n", "K", "D"), SIZES)
def test_sizes(n, K, D, order):
    compare_primitive("class_sum", (torch.randn(n, D), torch.randint(0, K, (n,)), None, K))


@pytest.mark.parametrize(("n", "K", "D"), SIZES)
def test_sizes_of_soft_labels(n, K, D):
    compare_primitive("class_sum", (torch.randn(n, D), torch.rand(n, K), None, K))


def test_what_is_not_finite_stays_in_its_class(order):
    x, labels = torch.randn(40, 3), torch.arange(40) % 5
    clean = run("class_sum", (x, labels, None, 5))[0]
    x[0, 0], x[1, 1], x[6, 2], x[11, 2] = math.nan, math.inf, math.inf, -math.inf
    (found, *_) = compare_primitive("class_sum", (x, labels, None, 5))
    assert found[0, 0].isnan() and found[1, 1] == math.inf and found[1, 2].isnan()
    found[0, 0], found[1, 1:] = clean[0, 0], clean[1, 1:]
    assert same_bits(found, clean)
