"""The specification against independent statements: one dense matrix, autograd, known vectors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fedkernels import fold_middle
from fedkernels.triple_lora import reference
from tests.ops.kit import Call, call

pytestmark = pytest.mark.once

WORD = 0xFFFFFFFF

# Random123 1.x, tests/kat_vectors, "philox4x32 7": counter, key, output.
KNOWN_VECTORS = (
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((WORD,) * 4, (WORD,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_VECTORS)
def test_philox_known_vectors(counter, key, output):
    words = reference.philox(key, tuple(torch.tensor(word) for word in counter))
    assert tuple(int(word) for word in words) == output


def test_philox_on_many_counters_equals_the_rounds_in_python_integers():
    generator = torch.Generator().manual_seed(3)
    counters = torch.randint(0, 2**32, (4, 50), generator=generator)
    key = (0xDEADBEEF, 0x01234567)
    words = torch.stack(reference.philox(key, tuple(counters)))
    for i in range(counters.shape[1]):
        assert words[:, i].tolist() == _philox(counters[:, i].tolist(), key)


def _philox(counter: list[int], key: tuple[int, int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(7):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & WORD, first >> 32 ^ c[3] ^ k[1], first & WORD]
        k = [k[0] + 0x9E3779B9 & WORD, k[1] + 0xBB67AE85 & WORD]
    return c


def _covered(index: Tensor | None, block: int, dim: int) -> list[int]:
    """Columns of the active blocks, one by one."""
    if index is None:
        return list(range(dim))
    active = set(index.tolist())
    return [d for d in range(dim) if d // block in active]


@pytest.mark.parametrize(
    ("index", "block", "dim"), [((0, 2), 4, 10), ((), 4, 10), ((1,), 3, 6), ((0, 1), 64, 65)]
)
def test_block_columns(index, block, dim):
    index = torch.tensor(index, dtype=torch.int64)
    assert reference.block_columns(index, block, dim).tolist() == _covered(index, block, dim)


def _dense(c: Call, factor: Tensor | float = 1.0) -> Tensor:
    """y through full-size factors and one matrix W + s B M A (two of them under dropout)."""
    t, o = c.tensors, c.options
    x, weight = t["x"], t["weight"]
    rank = t["A"].shape[0]
    columns = _covered(o.get("in_index"), o["block"], weight.shape[1])
    rows = _covered(o.get("out_index"), o["block"], weight.shape[0])
    A = torch.zeros(rank, weight.shape[1], dtype=x.dtype)
    B = torch.zeros(weight.shape[0], rank, dtype=x.dtype)
    A = A.index_copy(1, torch.tensor(columns, dtype=torch.int64), t["A"])
    B = B.index_copy(0, torch.tensor(rows, dtype=torch.int64), t["B"])
    middle = torch.eye(rank, dtype=x.dtype)
    if t["T"] is not None:
        middle = t["T"] + o["residual"] * middle
    adapter = o["scale"] * B @ middle @ A
    if isinstance(factor, float):
        return torch.nn.functional.linear(x, weight + adapter, t["bias"])
    return x @ weight.T + t["bias"] + (x * factor) @ adapter.T


FORMS = [
    pytest.param(plain, residual, sparse, id=f"plain={plain}-residual={residual}-sparse={sparse}")
    for plain, residual, sparse in itertools.product((False, True), repeat=3)
]


def _form(plain: bool, residual: bool, sparse: bool, rows: int = 7) -> Call:
    """float64; both factors sparse or both dense, the last block short and active."""
    options = {"residual": residual, "block": 8}
    if not sparse:
        return call((rows,), 20, 13, 3, dtype=torch.float64, plain=plain, **options)
    in_index, out_index = torch.tensor([0, 2]), torch.tensor([1])
    return call(
        (rows,), 20, 13, 3, dtype=torch.float64, plain=plain, a_width=12, b_width=5,
        in_index=in_index, out_index=out_index, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("plain", "residual", "sparse"), FORMS)
def test_forward_is_one_dense_matrix(plain, residual, sparse):
    c = _form(plain, residual, sparse)
    torch.testing.assert_close(c.y(backend="reference"), _dense(c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("plain", "residual", "sparse"), FORMS)
def test_written_backward_is_autograd_of_the_dense_composition(plain, residual, sparse, dropout):
    names = [n for n in ("x", "weight", "A", "T", "B", "bias") if not (plain and n == "T")]
    c = _form(plain, residual, sparse).train(*names)
    seed = torch.tensor([-7_000_000_000_123]) if dropout else None
    factor = reference.dropout_factor(seed, 7, 20, 0.3) if dropout else 1.0
    y = _dense(c, factor)
    grad = torch.randn(y.shape, dtype=torch.float64)
    expected = dict(
        zip(names, torch.autograd.grad(y, [c.tensors[n] for n in names], grad), strict=True)
    )
    tensors = {n: t for n, t in c.tensors.items() if n != "bias"}
    written = reference.triple_lora_backward(
        grad, tensors["x"], tensors["A"], tensors["T"], tensors["B"], weight=tensors["weight"],
        dropout_p=0.3 if dropout else 0.0, seed=seed, **c.options,
    )  # fmt: skip
    assert (written["T"] is None) == plain
    for name in names:
        torch.testing.assert_close(written[name], expected[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_fold_middle_is_the_product_in_float64(residual):
    c = call(dtype=torch.float64)
    B, T = c.tensors["B"], c.tensors["T"]
    M = T + torch.eye(5, dtype=torch.float64) if residual else T
    torch.testing.assert_close(fold_middle(B, T, scale=0.7, residual=residual), 0.7 * (B @ M))
    torch.testing.assert_close(fold_middle(B, None, scale=0.7, residual=residual), 0.7 * B)


def test_fold_middle_of_half_types_is_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        c = call(dtype=dtype)
        B, T = c.tensors["B"], c.tensors["T"]
        wide = fold_middle(B.float(), T.float(), scale=0.7)
        assert torch.equal(fold_middle(B, T, scale=0.7), wide.to(dtype))
