"""The harness itself: it catches what it says it catches, and computes what a GPU would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedkernels.testing import assert_within_budget
from tests.cuda_host.build import ORDERS, SHARED_LIMIT, VARIANTS, KernelFault

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture
def faults(programs):
    return lambda variant="plain": programs(KERNELS / "faults.cpp", variant)


@pytest.fixture
def sound(programs):
    return lambda variant="plain": programs(KERNELS / "sound.cpp", variant)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (0, "threads 0-47 at __syncthreads (faults.cuh:11), threads 48-63 returned"),
        (1, "threads 0-47 at __syncthreads (faults.cuh:18), threads 48-63 at __syncthreads"),
        (2, "the mask names lane 20, which has returned"),
        (3, "the mask does not name the lane itself"),
        (4, "the mask names lane 20, which the block does not have"),
        (5, "threads 0-15 at __shfl_xor_sync (faults.cuh:40), threads 16-31 at __syncthreads"),
    ],
)
def test_threads_that_do_not_meet_are_named(faults, fault, message, order):
    with pytest.raises(KernelFault) as caught:
        faults().call("fault", fault, np.zeros(64, np.float32), order=order)
    assert message in str(caught.value)
    assert "block (0, 0, 0)" in str(caught.value)


def wrong(program, entry: str, expected: np.ndarray, barrier: bool, order: str) -> int:
    y = np.zeros(expected.size, np.float32)
    program.call(entry, y, int(barrier), order=order)
    return int((y != expected).sum())


def test_a_missing_barrier_shows_in_some_order(faults):
    rotated, swapped = (np.arange(64) + 63) % 64, np.arange(32) ^ 1
    missed = {order: wrong(faults(), "rotate", rotated, False, order) for order in ORDERS}
    assert missed["descending"] == 63 and missed["ascending"] == 1 and missed["shuffled"] > 10
    for order in ORDERS:
        assert wrong(faults(), "rotate", rotated, True, order) == 0
        assert wrong(faults(), "swap", swapped, False, order) == 16
        assert wrong(faults(), "swap", swapped, True, order) == 0


def test_no_block_sees_what_another_left_in_shared_memory(faults):
    y, z, dynamic = (np.zeros(64, t) for t in (np.float32, np.float64, np.float32))
    faults().call("stale", y, z, dynamic)
    for array in (y, z, dynamic):
        assert (array[:32] == 7).all()
        assert np.isnan(array[32:]).all()


def test_a_copy_arrives_when_it_is_waited_for(faults):
    memory = np.arange(160, dtype=np.float32)
    start = -memory.ctypes.data // 4 % 4  # the first aligned element
    x, y = memory[start : start + 136], np.zeros(128, np.float32)
    faults().call("copy_tile", x, y, 0, 1)
    assert (y == x[:128]).all()
    faults().call("copy_tile", x, y, 0, 0)
    assert np.isnan(y).all()
    with pytest.raises(KernelFault, match=r"cp.async of 16 bytes at faults.cuh:\d+, thread 0"):
        faults().call("copy_tile", x, y, 1, 1)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ((0, 1, 1, 32, 1, 0), "grid (0, 1, 1)"),
        ((1, 65536, 1, 32, 1, 0), "grid (1, 65536, 1)"),
        ((1, 1, 65536, 32, 1, 0), "grid (1, 1, 65536)"),
        ((1, 1, 1, 1025, 1, 0), "block (1025, 1, 1)"),
        ((1, 1, 1, 0, 1, 0), "block (0, 1, 1)"),
        ((1, 1, 1, 1, 65, 0), "block (1, 1, 65)"),
        ((1, 1, 1, 32, 1, 166_913), "166913 bytes of shared memory, more than 166912"),
    ],
)
def test_launches_that_cuda_refuses_are_refused(faults, launch, message):
    y = np.zeros(1, np.float32)
    with pytest.raises(KernelFault) as caught:
        faults().call("launch_nothing", *launch, y)
    assert str(caught.value).startswith("nothing: ") and message in str(caught.value)


def test_launches_that_cuda_takes_are_taken(faults):
    y = np.zeros(1, np.float32)
    faults().call("launch_nothing", 70_000, 1, 1, 1, 1, 0, y)
    faults().call("launch_nothing", 1, 65_535, 1, 1, 1, 0, y)
    faults().call("launch_nothing", 1, 1, 1, 1024, 1, 166_912, y)
    limit = SHARED_LIMIT["sm_90"]
    faults().call("launch_nothing", 1, 1, 1, 32, 1, limit, y, shared_limit=limit)
    faults().call("make_grid", 2**31 - 1, 65_535, 65_535)
    for grid in ((0, 1, 1), (2**31, 1, 1), (1, 65_536, 1), (1, 1, 65_536)):
        with pytest.raises(KernelFault, match="no grid of"):
            faults().call("make_grid", *grid)


def test_static_shared_memory_has_its_own_limit(faults):
    with pytest.raises(KernelFault, match="49156 bytes of static shared memory"):
        faults().call("static_too_large", np.zeros(32, np.float32))


@pytest.mark.parametrize(
    ("entry", "past", "message"),
    [
        ("past_static", 1, "index 32 out of bounds"),
        ("past_static", -1, "out of bounds"),
        ("past_dynamic", 1, "use-after-poison"),
        ("past_input", 1, "heap-buffer-overflow"),
        ("overflow", 2**30, "signed integer overflow"),
    ],
)
def test_the_sanitizers_see_what_runs_past_its_memory(faults, entry, past, message):
    y = np.zeros(32, np.float32)
    arrays = (np.zeros(32, np.float32), y) if entry == "past_input" else (y,)
    faults("sanitized").call(entry, *arrays, 0)
    with pytest.raises(KernelFault, match=message):
        faults("sanitized").call(entry, *arrays, past)


def test_a_fault_is_named_under_the_sanitizers_too(faults):
    with pytest.raises(KernelFault, match="threads 0-47 at __syncthreads"):
        faults("sanitized").call("fault", 0, np.zeros(64, np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_reductions(sound, variant):
    x = torch.randn(5, 1000)
    x[3, 500] = float("nan")
    sums, tops = torch.empty(5), torch.empty(5)
    results = set()
    for order in ORDERS:
        sound(variant).call("row_reductions", x, sums, tops, 5, 1000, order=order)
        results.add((sums.numpy().tobytes(), tops.numpy().tobytes()))
    assert len(results) == 1, "the bits depend on the order of the threads"
    # A sum of n terms in float32 by torch is the specification of this kernel.
    assert_within_budget(sums, x.sum(1), x.double().sum(1))
    assert torch.equal(tops[[0, 1, 2, 4]], x.amax(1)[[0, 1, 2, 4]]) and tops[3].isnan()
    wide, top = torch.empty(5, dtype=torch.float64), torch.empty(5, dtype=torch.float64)
    sound(variant).call("row_reductions_double", x.double(), wide, top, 5, 1000)
    assert_within_budget(wide.float(), x.sum(1), x.double().sum(1))


@pytest.mark.parametrize("variant", ["plain", "sanitized"])
@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_and_votes(sound, variant, order):
    got = torch.empty(12, 32, dtype=torch.int32)
    sound(variant).call("exchanges", got, order=order)
    lane = torch.arange(32)

    def within(to: torch.Tensor, width: int) -> torch.Tensor:
        return torch.where((to >= 0) & (to // width == lane // width), to, lane)

    expected = [
        torch.full((32,), 5),
        lane // 8 * 8 + 5,
        lane ^ 3,
        within(lane - 2, 32),
        within(lane - 2, 8),
        within(lane + 3, 32),
        within(lane + 3, 16),
        torch.full((32,), sum(1 << i for i in range(0, 32, 3))),
        torch.full((32,), 1),
        torch.full((32,), 0),
        torch.where(lane < 16, lane + 16, 120),
        lane // 8 * 64 + 28,
    ]
    for row, values in enumerate(expected):
        assert got[row].tolist() == values.tolist(), row


def test_atomics_and_votes_of_a_block(sound):
    for order in ORDERS:
        count, votes = torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
        sound().call("counts", count, votes, order=order)
        assert count.item() == 3 * 2 * 2 * 96
        assert votes.tolist() == [48, 1, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_3xtf32_is_a_float32_product(sound, variant):
    K = 256
    a, b, c = torch.randn(16, K), torch.randn(8, K), torch.empty(16, 8)
    for order in ORDERS:
        sound(variant).call("multiply_3xtf32", a, b, c, K, order=order)
        assert_within_budget(c, a @ b.T, a.double() @ b.double().T)
    rounded = (a.view(torch.int32) & ~0x1FFF).view(torch.float32)
    with pytest.raises(AssertionError, match="over budget"):
        assert_within_budget(rounded @ b.T, a @ b.T, a.double() @ b.double().T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bf16_product_is_exact_up_to_its_sum(sound, variant):
    K = 64
    a, b = (torch.randn(rows, K).to(torch.bfloat16) for rows in (16, 8))
    c = torch.empty(16, 8)
    sound(variant).call("multiply_bf16", a, b, c, K)
    assert_within_budget(c, a.float() @ b.float().T, a.double() @ b.double().T)


def test_narrow_copies_and_zeros(sound):
    x = torch.arange(64, dtype=torch.float32) + 1
    narrow, wide = torch.empty(32), torch.empty(64)
    sound("sanitized").call("copies", x, narrow, wide, 20)
    assert torch.equal(narrow, torch.where(torch.arange(32) < 20, x[:32], 0))
    assert torch.equal(wide, torch.where(torch.arange(64) < 40, x, 0))


def test_functions_are_exact_or_as_coarse_as_cuda_states(sound):
    x = torch.linspace(-20, 20, 32)
    true = torch.exp2(x.double())
    errors = {}
    for variant in ("plain", "coarse"):
        exact, approx = torch.empty(32), torch.empty(32)
        sound(variant).call("exponentials", x, exact, approx)
        for y in (exact, approx):
            errors[variant] = ((y.double() - true).abs() / true).max().item()
            assert errors[variant] <= 2.5 * 2**-23
    assert errors["plain"] <= 2**-23 < errors["coarse"]


def test_contraction_shows_what_nvcc_fuses(sound):
    x = torch.rand(32) + 1
    out = torch.empty(32)
    sound("plain").call("squares", x, x, out)
    assert not out.any()
    sound("contracted").call("squares", x, x, out)
    assert out.any()
