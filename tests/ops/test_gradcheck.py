"""gradcheck of the public functions in float64: numerical derivatives, no formula of ours."""

from __future__ import annotations

import pytest
import torch

from fedkernels import fold_middle, select_middle, triple_lora_delta, triple_lora_linear
from fedkernels.testing import random_tensor
from fedkernels.triple_lora import api
from tests.ops.kit import BACKENDS, TENSORS, call

OPTIONS = {
    "dense": {},
    "plain": {"plain": True},
    "no residual": {"residual": False},
    "dropout": {"dropout_p": 0.4, "training": True},
    "sparse": {
        "in_index": torch.tensor([0, 2]), "out_index": torch.tensor([1]), "block": 3,
        "a_width": 4, "b_width": 2,
    },
    "sparse and dropout": {
        "in_index": torch.tensor([1, 2]), "block": 3, "a_width": 4,
        "dropout_p": 0.4, "training": True,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fixed_seed(monkeypatch):
    monkeypatch.setattr(api, "_draw_seed", lambda x: torch.tensor([123456789]))


def _gradcheck(function, names, c, backend) -> bool:
    names = [n for n in names if c.tensors.get(n) is not None]
    c = c.train(*names)

    def run(*values):
        given = {n: t for n, t in c.tensors.items() if n in names or function is triple_lora_linear}
        tensors = {**given, **dict(zip(names, values, strict=True))}
        tensors.setdefault("T", None)
        return function(**tensors, **c.options, backend=backend)

    return torch.autograd.gradcheck(run, [c.tensors[n] for n in names])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("leading", [(), (4,), (2, 2)])
def test_linear(leading, kind, backend):
    c = call(leading, 7, 5, 2, dtype=torch.float64, **OPTIONS[kind])
    assert _gradcheck(triple_lora_linear, TENSORS, c, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("base", [False, True])
def test_delta(base, kind, backend):
    c = call((4,), 7, 5, 2, dtype=torch.float64, **OPTIONS[kind])
    names = ["x", "A", "T", "B"]
    if base:
        c.tensors["base"] = random_tensor((4, 5), dtype=torch.float64, seed=8)
        names.append("base")
    else:
        c.options["out_features"] = 5
    assert _gradcheck(triple_lora_delta, names, c, backend)


@pytest.mark.parametrize("residual", [False, True])
def test_fold_middle(residual):
    B = random_tensor((5, 3), dtype=torch.float64, seed=1, requires_grad=True)
    T = random_tensor((3, 3), dtype=torch.float64, seed=2, requires_grad=True)
    options = {"scale": 0.7, "residual": residual}
    assert torch.autograd.gradcheck(lambda B, T: fold_middle(B, T, **options), (B, T))
    assert torch.autograd.gradcheck(lambda B: fold_middle(B, None, **options), (B,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_selection_by_its_middle(rank, backend):
    """By the scores there is no numerical derivative: straight through is a definition."""
    middle = random_tensor((2, 3, 3), dtype=torch.float64, seed=1, requires_grad=True)
    scores = random_tensor((2, 3, 3), dtype=torch.float64, seed=2)
    assert torch.autograd.gradcheck(
        lambda m: select_middle(m, scores, rank, backend=backend)[0], (middle,)
    )
