"""needs_input_grad: a gradient has the same bits whatever else is asked for; what is saved."""

from __future__ import annotations

import itertools

import pytest
import torch

from fedkernels import TripleLoraLinear, select_middle, triple_lora_delta
from fedkernels.testing import random_tensor, saved_activations
from tests.ops.kit import BACKENDS, CPU, TENSORS, assert_same_bits, call, needs_extension

SUBSETS = [
    names for count in range(len(TENSORS) + 1) for names in itertools.combinations(TENSORS, count)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "plain", "sparse", "dropout"])
def test_every_subset_has_the_bits_of_the_full_set(kind, dtype, backend):
    options = {
        "dense": {},
        "plain": {"plain": True},
        "sparse": {
            "in_index": torch.tensor([0, 2]), "out_index": torch.tensor([1]), "block": 16,
            "a_width": 24, "b_width": 8,
        },
        "dropout": {"dropout_p": 0.5, "training": True},
    }[kind]  # fmt: skip
    c = call((21,), dtype=dtype, **options)
    names = [n for n in TENSORS if c.tensors[n] is not None]
    full = c.train(*names).results(backend=backend)
    for subset in SUBSETS:
        if set(subset) <= set(names):
            torch.manual_seed(0)
            full = full if kind != "dropout" else c.train(*names).results(backend=backend)
            torch.manual_seed(0)
            some = c.train(*subset).results(backend=backend)
            assert set(some) == {"y", *subset}
            assert_same_bits(some, full, subset)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_subset_of_delta(backend):
    c = call((21,))
    tensors = {n: c.tensors[n] for n in ("x", "A", "T", "B")}
    tensors["base"] = random_tensor((21, 24), seed=5)
    grad = random_tensor((21, 24), seed=6)

    def grads(names):
        leaves = {n: t.detach().requires_grad_(n in names) for n, t in tensors.items()}
        y = triple_lora_delta(**leaves, backend=backend)
        found = torch.autograd.grad(y, [leaves[n] for n in names], grad) if names else ()
        return dict(zip(names, found, strict=True))

    full = grads(tuple(tensors))
    for count in range(1, 6):
        for names in itertools.combinations(tensors, count):
            assert_same_bits(grads(names), full, names)


def _saved(c, *, exclude=("weight", "A", "T", "B", "bias"), **more):
    kept = [c.tensors[n] for n in exclude if c.tensors[n] is not None]
    with saved_activations(exclude=kept) as saved:
        y = c.y(backend="cpu", **more)
    return saved, y


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [("T",), ("B",), ("T", "B"), ("x", "T"), ("x", "T", "B", "bias")])
def test_with_a_and_weight_frozen_only_h_is_saved(train, dtype):
    c = call((3, 7), 40, 24, 5, dtype=dtype).train(*train)
    saved, _ = _saved(c)
    assert saved.tensors == [((21, 5), torch.float32)]
    assert saved.elements == 21 * 5


@needs_extension
def test_h_is_as_wide_as_the_rank_with_blocks_and_dropout_too():
    c = call(
        (21,), 40, 24, 5, a_width=24, in_index=torch.tensor([0, 2]), block=16,
        dropout_p=0.5, training=True,
    ).train("T", "B")  # fmt: skip
    saved, _ = _saved(c)
    assert saved.elements == 21 * 5


@needs_extension
@pytest.mark.parametrize("train", [("A",), ("weight",), ("A", "T", "B"), TENSORS])
def test_x_is_saved_by_identity(train):
    c = call((21,)).train(*train)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        c.y(backend="cpu")
    x = c.tensors["x"]
    assert any(t.data_ptr() == x.data_ptr() and t.shape == x.shape for t in packed)
    saved, _ = _saved(c, exclude=("x", *TENSORS))
    wants_h = {"T", "B"} & set(train)
    assert saved.elements == (21 * 5 if wants_h else 0)


@needs_extension
def test_nothing_but_parameters_is_saved_where_nothing_else_is_needed():
    for train in ((), ("x",), ("bias",), ("x", "bias")):
        saved, y = _saved(call((21,)).train(*train))
        assert saved.elements == 0
        assert y.requires_grad == bool(train)
    with saved_activations() as saved:
        call((21,)).y(backend="cpu")
    assert saved.tensors == []


@needs_extension
def test_under_autocast_the_float32_x_is_saved_and_not_its_cast():
    c = call((21,)).train("A", "T", "B")
    packed = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t),
    ):
        c.y(backend="cpu")
    x = c.tensors["x"]
    assert any(t.data_ptr() == x.data_ptr() and t.dtype == torch.float32 for t in packed)
    assert all(t.dtype == torch.float32 for t in packed)
    saved, _ = _saved(c, exclude=("x", *TENSORS))
    assert saved.elements == 21 * 5


@needs_extension
def test_the_phases_of_the_layer_save_what_they_train():
    layer = TripleLoraLinear(torch.nn.Linear(40, 24), 5, backend="cpu")
    x = random_tensor((21, 40), requires_grad=True)
    expected = {"all": 21 * 45, "private": 21 * 45, "shared": 21 * 5, "frozen": 0}
    for phase, elements in expected.items():
        layer.set_phase(phase)
        with saved_activations(exclude=layer.parameters()) as saved:
            layer(x)
        assert saved.elements == elements, phase


@pytest.mark.parametrize("backend", [CPU])
def test_selection_saves_the_middle_for_scores_only(backend):
    middle = random_tensor((3, 8, 8), seed=1, requires_grad=True)
    scores = random_tensor((3, 8, 8), seed=2)
    with saved_activations() as saved:
        select_middle(middle, scores, 2, backend=backend)
    assert saved.tensors == [((3, 4), torch.int64)]
    with saved_activations(exclude=[middle]) as saved:
        select_middle(middle, scores.requires_grad_(), 2, backend=backend)
    assert saved.tensors == [((3, 4), torch.int64)]
