"""select_middle: gradients to the middle and, straight through, to the scores; `index=`."""

from __future__ import annotations

import pytest
import torch

from fedkernels import select_middle
from fedkernels.testing import poisoned_empty, random_tensor
from tests.ops.kit import BACKENDS, DTYPES


def _leaves(shape, dtype, scores_dtype=None):
    middle = random_tensor(shape, dtype=dtype, seed=1, requires_grad=True)
    scores = random_tensor(shape, dtype=scores_dtype or dtype, seed=2, requires_grad=True)
    return middle, scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (2, 3, 5, 5), (0, 5, 5)])
def test_gradients_scatter_back(shape, dtype, backend):
    middle, scores = _leaves(shape, dtype)
    T, index = select_middle(middle, scores, 3, backend=backend)
    grad = random_tensor(T.shape, dtype=dtype, seed=3)
    dm, ds = torch.autograd.grad(T, (middle, scores), grad)
    assert dm.dtype == ds.dtype == dtype
    zeros, flat = torch.zeros(*shape[:-2], 25, dtype=dtype), middle.detach().flatten(-2)
    dT = grad.flatten(-2)
    assert torch.equal(dm.flatten(-2), zeros.scatter(-1, index, dT))
    expected = zeros.scatter(-1, index, dT * flat.gather(-1, index))
    assert torch.equal(ds.flatten(-2), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", ["middle", "scores"])
def test_one_gradient_alone(train, backend):
    middle, scores = _leaves((3, 5, 5), torch.float32)
    grad = random_tensor((3, 3, 3), seed=3)
    T, _ = select_middle(middle, scores, 3, backend=backend)
    both = dict(
        zip(("middle", "scores"), torch.autograd.grad(T, (middle, scores), grad), strict=True)
    )
    leaves = {"middle": middle.detach(), "scores": scores.detach()}
    leaves[train].requires_grad_()
    T, _ = select_middle(**leaves, rank=3, backend=backend)
    (alone,) = torch.autograd.grad(T, leaves[train], grad)
    assert torch.equal(alone, both[train])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_straight_through_the_scores_get_nothing(backend):
    middle, scores = _leaves((3, 5, 5), torch.float32)
    T, _ = select_middle(middle, scores, 3, straight_through=False, backend=backend)
    dm, ds = torch.autograd.grad(T.sum(), (middle, scores), allow_unused=True)
    assert ds is None and int(dm.sum()) == 27
    T, index = select_middle(middle.detach(), scores, 3, straight_through=False, backend=backend)
    assert not T.requires_grad and not index.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "scores_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16,) * 2],
)
def test_each_gradient_has_its_own_dtype(dtype, scores_dtype, backend):
    middle, scores = _leaves((3, 5, 5), dtype, scores_dtype)
    T, _ = select_middle(middle, scores, 3, backend=backend)
    assert T.dtype == dtype
    dm, ds = torch.autograd.grad(T.float().square().sum(), (middle, scores))
    assert dm.dtype == dtype and ds.dtype == scores_dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_given_index_gathers_with_the_same_gradients(backend):
    middle, scores = _leaves((3, 5, 5), torch.float32)
    T, index = select_middle(middle, scores, 3, backend=backend)
    grad = random_tensor((3, 3, 3), seed=3)
    expected = torch.autograd.grad(T, (middle, scores), grad)
    again, same = select_middle(middle, scores, 3, index=index, backend=backend)
    assert torch.equal(again, T) and torch.equal(same, index)
    for a, b in zip(torch.autograd.grad(again, (middle, scores), grad), expected, strict=True):
        assert torch.equal(a, b)
    alone, _ = select_middle(middle, None, 3, index=index, backend=backend)
    (dm,) = torch.autograd.grad(alone, middle, grad)
    assert torch.equal(dm, expected[0])
    # Nothing is selected: the index may name any entries, in any order.
    other = torch.arange(24, 15, -1).expand(3, 9)
    T, _ = select_middle(middle, scores, 3, index=other, backend=backend)
    assert torch.equal(T.flatten(1), middle.flatten(1)[:, 16:].flip(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_that_is_named_twice_gets_both_gradients(backend):
    middle, scores = _leaves((1, 3, 3), torch.float64)
    index = torch.tensor([[4, 4, 0, 4]])
    T, _ = select_middle(middle, scores, 2, index=index, backend=backend)
    grad = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    dm, ds = torch.autograd.grad(T, (middle, scores), grad)
    expected = torch.tensor([[3.0, 0, 0, 0, 7.0, 0, 0, 0, 0]], dtype=torch.float64)
    assert torch.equal(dm.flatten(1), expected)
    torch.testing.assert_close(ds.flatten(1), expected * middle.detach().flatten(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_stays_unwritten(backend):
    middle, scores = _leaves((3, 40, 40), torch.float32)
    with poisoned_empty():
        T, index = select_middle(middle, scores, 7, backend=backend)
        dm, ds = torch.autograd.grad(T.sum(), (middle, scores))
    assert not any(t.isnan().any() for t in (T, dm, ds))
    assert int(index.max()) < 1600 and int(index.min()) >= 0
