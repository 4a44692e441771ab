"""Offsets past 2^31 elements. Gigabytes: `make test-slow`."""

from __future__ import annotations

import pytest
import torch

from fedkernels import select_middle, triple_lora_delta, triple_lora_linear
from tests.ops.kit import needs_extension

pytestmark = [pytest.mark.slow, needs_extension]
ROWS, WIDTH = 2**26 + 3, 32  # 2^31 + 96 elements, 4.3 GB in bfloat16


def test_rows_past_the_limit_of_32_bits():
    x = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    x[-2:] = torch.randn(2, WIDTH).bfloat16()
    A, B = torch.randn(2, WIDTH), torch.randn(1, 2)
    y = triple_lora_delta(x, A, None, B, backend="cpu")
    few = triple_lora_delta(x[-4:], A, None, B, backend="cpu")
    assert torch.equal(y[-4:], few) and bool(few[2:].any())
    assert not y[:-2].any()


def test_an_output_past_the_limit_of_32_bits():
    x = torch.zeros(ROWS, 1, dtype=torch.bfloat16)
    x[-2:] = torch.tensor([[1.0], [-2.0]], dtype=torch.bfloat16)
    weight = torch.randn(WIDTH, 1).bfloat16()
    A, B = torch.randn(1, 1), torch.randn(WIDTH, 1)
    y = triple_lora_linear(x, weight, A, None, B, backend="cpu")
    few = triple_lora_linear(x[-4:], weight, A, None, B, backend="cpu")
    assert torch.equal(y[-4:], few) and bool(few[2:].any())


def test_matrices_past_the_limit_of_32_bits():
    count = 2**31 // 64**2 + 2
    scores = torch.zeros(count, 64, 64, dtype=torch.bfloat16)
    scores[-1, 63, 63] = 1.0
    T, index = select_middle(scores, scores, 1, backend="cpu")
    assert index[-1].item() == 64 * 64 - 1 and T[-1].item() == 1.0
    assert not index[:-1].any()
