"""The compiled ops for points: statuses, empty problems, the same bits whatever stands around."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fedkernels.testing import poisoned_empty
from fedkernels.transport import reference
from tests.ops.kit import assert_same_bits, needs_extension, with_threads
from tests.ops.transport.problems import CONVERGED, EMPTY, INFEASIBLE, NON_FINITE, eps_of, masses_of
from tests.ops.transport.test_points_op import CPU, DTYPES, cloud, forward

pytestmark = needs_extension
INF, NAN = math.inf, math.nan


def everything(x, y, a, b, eps, sizes, metric, **options) -> dict[str, Tensor]:
    """All four ops on one batch."""
    solved = forward(CPU, x, y, a, b, eps, sizes=sizes, metric=metric, **options)
    u, v = solved.u, solved.v
    batch, n, m = len(u), u.shape[1], v.shape[1]
    args = (x, y, eps, sizes, metric, u, v)

    def spread(*shape):
        return torch.linspace(-1, 1, math.prod(shape), dtype=x.dtype).reshape(1, *shape)

    V, W = (
        spread(m, 3).expand(batch, -1, -1).contiguous(),
        spread(n, 17).expand(batch, -1, -1).contiguous(),
    )
    one = torch.ones(batch, dtype=x.dtype)
    alpha, beta = spread(n).expand(batch, -1).contiguous(), spread(m).expand(batch, -1).contiguous()
    dx, dy = CPU.sinkhorn_points_backward(*args, one, one / 2, alpha, beta)
    return {
        **solved._asdict(),
        "plan": CPU.sinkhorn_points_plan(*args, one),
        "right": CPU.sinkhorn_points_apply(*args, V, False),
        "left": CPU.sinkhorn_points_apply(*args, W, True),
        "dx": dx,
        "dy": dy,
    }


def batch_of(batch, n, m, dim, dtype=torch.float32):
    x, y = cloud(batch, n, dim, dtype=dtype), cloud(batch, m, dim, seed=1, dtype=dtype)
    return x, y, masses_of(batch, n, dtype=dtype), masses_of(batch, m, seed=1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 700, 300, 20), (1, 300, 700, 3), (9, 40, 33, 5)])
def test_the_same_bits_for_every_number_of_threads(size, dtype):
    batch = batch_of(*size, dtype)

    def run():
        return everything(*batch, eps_of(0.1), None, 0, max_iter=7)

    first = with_threads(1, run)
    assert_same_bits(with_threads(1, run), first, "run to run")
    for threads in (2, 3):
        assert_same_bits(with_threads(threads, run), first, f"{threads} threads")


def test_the_same_bits_whether_products_are_kept():
    """Many threads share the memory for products: 5.5 MiB fit for one problem, not for eight."""
    x, y, _, _ = batch_of(1, 1200, 1200, 16)
    alone = forward(CPU, x, y, max_iter=3)
    many = with_threads(8, lambda: forward(CPU, x, y, max_iter=3, batch=32))
    for k in (0, 31):
        assert_same_bits(alone._asdict(), {n: t[k : k + 1] for n, t in many._asdict().items()})


@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"sor": True, "tol": 1e-5}, {"rho": (0.5, INF), "tol": 1e-5}]
)
def test_the_bits_of_a_problem_are_its_own(metric, options):
    sizes = torch.tensor([[20, 17], [1, 30], [33, 1], [40, 33], [16, 32], [7, 9]])
    x, y, a, b = batch_of(6, 40, 33, 5)
    for k, (n, m) in enumerate(sizes.tolist()):
        # What stands in the padding is nobody's business, NaN included.
        x[k, n:], y[k, m:], a[k, n:], b[k, m:] = NAN, INF, NAN, -1.0
        a[k, :n] /= a[k, :n].sum()
        b[k, :m] /= b[k, :m].sum()
    eps = torch.linspace(0.02, 0.5, 6, dtype=torch.float64)
    options = {"max_iter": 100, **options}
    whole = everything(x, y, a, b, eps, sizes, metric, **options)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    moved = everything(
        x[order], y[order], a[order], b[order], eps[order], sizes[order], metric, **options
    )
    assert_same_bits(moved, {name: t[order] for name, t in whole.items()}, "permuted")
    for k, (n, m) in enumerate(sizes.tolist()):
        alone = (t[k : k + 1, :s].contiguous() for t, s in ((x, n), (y, m), (a, n), (b, m)))
        # V of the block is not V of the problem: only what it does not enter is compared.
        names = (
            "value",
            "linear",
            "f",
            "g",
            "u",
            "v",
            "r",
            "c",
            "n_iter",
            "error",
            "status",
            "plan",
        )
        solo = everything(*alone, eps[k : k + 1], None, metric, **options)
        for name in names:
            part, ours = solo[name], whole[name][k : k + 1]
            cut = ours[tuple(slice(0, s) for s in part.shape)]
            assert_same_bits({name: part}, {name: cut}, k)
            if cut.numel():
                rest = ours.clone()
                rest[tuple(slice(0, s) for s in part.shape)] = 0
                assert not rest.any(), (name, "padding")


def test_shared_points_and_masses():
    x, y, _, b = batch_of(3, 21, 18, 4)
    eps = eps_of(0.1, 0.2, 0.3)
    sizes = torch.tensor([[21, 18], [10, 18], [21, 5]])
    wide = [t[:1].expand(3, *t.shape[1:]).contiguous() for t in (x, y, b)]
    for k, (_, m) in enumerate(sizes.tolist()):
        wide[2][k, m:] = 0
    mass = wide[2][:1] / wide[2][0].sum()
    shared = forward(CPU, x[:1], y[:1], None, mass, eps, batch=3)
    spread = forward(CPU, *wide[:2], None, mass.expand(3, -1).contiguous(), eps)
    assert_same_bits(shared._asdict(), spread._asdict())
    one = torch.ones(3)
    for use in (None, sizes):
        args = (eps, use, 0, shared.u, shared.v, one, one, None, None)
        for mine, other in zip(
            CPU.sinkhorn_points_backward(x[:1], y[:1], *args),
            CPU.sinkhorn_points_backward(*wide[:2], *args),
            strict=True,
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rho", [(INF, INF), (1.0, 1.0), (INF, 1.0)])
def test_statuses_are_those_of_the_reference(rho, dtype):
    """One problem of each kind; none touches a bit of another."""
    count = 14
    x, y, a, b = batch_of(count, 9, 7, 3, dtype)
    sizes = torch.tensor([[9, 7]]).repeat(count, 1)
    eps = torch.full((count,), 0.1, dtype=torch.float64)
    g0 = torch.zeros(count, 7, dtype=dtype)
    x[1, 3, 1] = NAN
    y[2, 0, 0] = INF
    a[3, 0] = NAN
    b[4, 2] = -0.1
    b[5] *= 1.01
    a[6] = b[6] = 0
    b[7] = 0
    sizes[8] = torch.tensor([0, 0])
    sizes[9] = torch.tensor([0, 7])
    eps[10] = NAN
    eps[11] = 1e-45 if dtype == torch.float32 else 0.0  # log2(e) / eps leaves the range
    g0[12, 3] = INF
    x[13] *= 1e30 if dtype == torch.float32 else 1e200  # squares leave the range
    options = {"sizes": sizes, "g0": g0, "rho": rho, "max_iter": 20}
    ours = forward(CPU, x, y, a, b, eps, **options)
    base = forward(reference, x, y, a, b, eps, **options)
    assert ours.status.tolist() == base.status.tolist()
    assert {NON_FINITE, INFEASIBLE, EMPTY, CONVERGED} <= set(ours.status.tolist())
    assert ours.n_iter.tolist() == base.n_iter.tolist()
    for name in ours._fields[:-1]:
        torch.testing.assert_close(
            getattr(ours, name), getattr(base, name), equal_nan=True, rtol=1e-3, atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
    alone = forward(CPU, x[:1], y[:1], a[:1], b[:1], eps[:1], rho=rho, max_iter=20)
    assert_same_bits(alone._asdict(), {n: t[:1] for n, t in ours._asdict().items()})
    # A problem that failed has the gradient 0 where nothing is asked of it.
    zero = torch.zeros(count, dtype=dtype)
    args = (x, y, eps, sizes, 0, ours.u, ours.v)
    for grad in CPU.sinkhorn_points_backward(*args, zero, zero, None, None):
        assert not grad.any()
    assert not CPU.sinkhorn_points_plan(*args, zero).any()
    for k in (6, 8):  # no mass, no points: a plan of zeros
        assert not CPU.sinkhorn_points_plan(*args, None)[k].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 0, 0, 2), (2, 4, 3, 0)]
)
def test_nothing(shape, dtype):
    batch, n, m, dim = shape
    x, y = torch.zeros(batch, n, dim, dtype=dtype), torch.zeros(batch, m, dim, dtype=dtype)
    for metric in (0, 1, 2):
        ours, base = (forward(ops, x, y, metric=metric, batch=batch) for ops in (CPU, reference))
        assert ours.status.tolist() == base.status.tolist()
        for name in ours._fields:
            mine, other = getattr(ours, name), getattr(base, name)
            assert mine.shape == other.shape and mine.dtype == other.dtype
            torch.testing.assert_close(mine, other, equal_nan=True)
        result = everything(x, y, None, None, eps_of(0.1), None, metric, batch=batch)
        assert result["plan"].shape == (batch, n, m) and result["dx"].shape == x.shape
        assert result["right"].shape == (batch, n, 3) and result["left"].shape == (batch, m, 17)
        if n and not m:
            assert not result["right"].any() and not result["dx"].any()


@pytest.mark.parametrize("size", [(3, 33, 20, 5), (1, 200, 130, 17)])
def test_poisoned_memory_leaves_no_nan(size):
    batch = batch_of(*size)
    for sizes in (None, torch.tensor([[15, 20]] * size[0])):
        masses = (None, None) if sizes is not None else batch[2:]
        with poisoned_empty():
            results = everything(*batch[:2], *masses, eps_of(0.1), sizes, 0)
        assert all(bool(value.isfinite().all()) for value in results.values())


def test_schemas_and_fakes():
    x, y, a, b = batch_of(2, 9, 7, 3)
    solved = forward(CPU, x, y, a, b)
    args = (x, y, eps_of(0.1), None, 0, solved.u, solved.v)
    one = torch.ones(2)
    for op, arguments in (
        (CPU.sinkhorn_points_forward,
         (x, y, a, None, eps_of(0.1), None, None, 2, 0, INF, INF, 3, 0.0, False, False)),
        (CPU.sinkhorn_points_plan, (*args, one)),
        (CPU.sinkhorn_points_apply, (*args, torch.ones(2, 7, 4), False)),
        (CPU.sinkhorn_points_apply, (*args, torch.ones(2, 9, 4), True)),
        (CPU.sinkhorn_points_backward, (*args, one, one, None, None)),
    ):  # fmt: skip
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


_PEAK = """
import torch
from fedkernels.transport.ops import primitives

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(2)
ops, inf = primitives("cpu"), float("inf")
def run(n):
    x, y = torch.rand(1, n, 8), torch.rand(1, n, 8)
    eps = torch.tensor([0.5], dtype=torch.float64)
    options = (1, 0, inf, inf, 2, 0.0, False, False)
    s = ops.sinkhorn_points_forward(x, y, None, None, eps, None, None, *options)
    one = torch.ones(1)
    ops.sinkhorn_points_backward(x, y, eps, None, 0, s[4], s[5], one, one, None, None)
run(300)
before = peak()
run(8192)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_matrix_is_held():
    """8192 x 8192 entries would be 256 MiB; points, results, sums of stripes are 1 MiB each."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * 1024, f"{done.stdout} KiB"
