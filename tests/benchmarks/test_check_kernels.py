"""`check_kernels`: every case passes here, and a wrong kernel is found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedkernels import select_middle, triple_lora_linear
from fedkernels.prototype.api import OPS as PROTOTYPE_OPS
from fedkernels.testing import TRIPLE_LORA_CASES, long_double, triple_lora_inputs
from fedkernels.testing.check import check_kernels, compare, plans, prototype, transport
from fedkernels.testing.check.exact import long_double_results
from fedkernels.transport.api import OPS as TRANSPORT_OPS
from fedkernels.triple_lora.api import OPS


def test_every_kernel_passes_every_case() -> None:
    seen = []
    rows = check_kernels("triple_lora", progress=seen.append)
    failed = [str(row) for row in rows if row.status == "failed"]
    assert not failed, "\n".join(failed)
    assert seen == rows
    # Every candidate of every op appears: as passed, or as skipped with its reason.
    for op, candidates in OPS.items():
        assert {row.backend for row in rows if row.op == op} == {c.name for c in candidates}
        assert {row.dtype for row in rows if row.op == op} == {
            "float32",
            "bfloat16",
            "float16",
            "float64",
        }
    assert all(row.detail for row in rows)
    assert any(row.op == "fold_middle" and row.passed for row in rows)


def test_prototypes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few cases of every op; sizes, edges and bits are in tests/ops/prototype."""
    names = ("small", "no-point", "euclidean", "strided")
    cases = tuple(case for case in prototype.PROTOTYPE_CASES if case.name in names)
    assert len(cases) == len(names)
    monkeypatch.setattr(prototype, "PROTOTYPE_CASES", cases)
    rows = check_kernels("prototype")
    failed = [str(row) for row in rows if row.status == "failed"]
    assert not failed, "\n".join(failed)
    for op, candidates in PROTOTYPE_OPS.items():
        assert {row.backend for row in rows if row.op == op} == {c.name for c in candidates}
        assert any(row.passed for row in rows if row.op == op)
    assert {row.dtype for row in rows} == {"float32", "bfloat16", "float16", "float64"}


@pytest.mark.parametrize("wrong", ["distance", "index"])
def test_a_wrong_neighbour_is_found(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    inputs = prototype.prototype_inputs(prototype.PROTOTYPE_CASES[0], "prototype_assign")
    right = prototype.prototype_assign

    def off(x, prototypes, **options):
        found = right(x, prototypes, **options)
        if wrong == "distance":
            return replace(found, distance=found.distance * (1 + 2**-16))
        index = found.index.clone()
        index[3, 0] = (index[3, 0] + 1) % len(prototypes)
        return replace(found, index=index)

    off.__name__ = "prototype_assign"
    monkeypatch.setattr(prototype, "prototype_assign", off)
    if wrong == "index":
        assert not prototype.nearest_is_exact(**inputs, backend="reference").passed
    else:
        assert prototype.prototype_within_budget(right, inputs, backend="reference").passed
        found = {"calls": 0}

        def once(*arguments, **options):
            found["calls"] += 1
            return (off if found["calls"] == 1 else right)(*arguments, **options)

        once.__name__ = "prototype_assign"
        assert not prototype.prototype_within_budget(once, inputs, backend="auto").passed


def test_transport_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few cases of every op; all of Sinkhorn's are in tests/ops/transport."""
    few = {
        (transport, "SINKHORN_CASES"): ("small", "ragged-unbalanced", "sharp"),
        (transport, "SINKHORN_POINTS_CASES"): ("euclidean", "ragged", "cosine"),
        (plans, "_EMD_CASES"): ("masses", "ties", "one row"),
        (plans, "_CONDITIONAL_CASES"): ("small", "one"),
    }
    for (module, name), names in few.items():
        cases = getattr(module, name)
        some = (
            {case: cases[case] for case in names}
            if isinstance(cases, dict)
            else tuple(case for case in cases if case.name in names)
        )
        assert len(some) == len(names)
        monkeypatch.setattr(module, name, some)
    rows = check_kernels("transport")
    failed = [str(row) for row in rows if row.status == "failed"]
    assert not failed, "\n".join(failed)
    for op, candidates in TRANSPORT_OPS.items():
        assert {row.backend for row in rows if row.op == op} == {c.name for c in candidates}
        assert any(row.passed for row in rows if row.op == op)
    assert {row.dtype for row in rows} == {"float32", "bfloat16", "float16", "float64"}


def test_unknown_family_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^family must be one of prototype, transport, triple_lora; got 'x'$"
    ):
        check_kernels("x")


def _forward_and_wrong_gradient(*tensors, backend: str, **named) -> torch.Tensor:
    y = triple_lora_linear(*tensors, **named, backend=backend)
    if backend != "reference" and y.requires_grad:
        y.register_hook(lambda grad: grad * 1.01)
    return y


_forward_and_wrong_gradient.__name__ = "triple_lora_linear"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_wrong_gradient_is_found(dtype: torch.dtype) -> None:
    """One per cent on all gradients, below bfloat16's rounding of a single element."""
    case = next(case for case in TRIPLE_LORA_CASES if case.name == "tokens")
    arguments = triple_lora_inputs(case, dtype=dtype)
    tensors = {k: v for k, v in arguments.items() if k in ("x", "weight", "A", "T", "B", "bias")}
    options = {k: v for k, v in arguments.items() if k not in tensors}
    for name in ("x", "A", "T", "B"):
        tensors[name].requires_grad_()
    grad = torch.randn(*case.leading, case.out_features).to(dtype)
    calls = (tensors, options, grad)
    assert compare.within_budget(triple_lora_linear, *calls, backend="auto").passed
    wrong = compare.within_budget(_forward_and_wrong_gradient, *calls, backend="auto")
    if wrong.backend != "reference":
        assert not wrong.passed and "over budget" in wrong.detail


@pytest.mark.parametrize("previous", [False, True])
def test_a_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch, previous: bool) -> None:
    middle, scores = torch.randn(2, 8, 8), torch.randn(2, 8, 8)
    given = {"previous": compare.choose(torch.randn(2, 8, 8), 3, None)} if previous else {}
    assert compare.selection_is_exact(middle, scores, 3, **given).passed

    def off_by_one(*arguments, **named):
        T, index = select_middle(*arguments, **named)
        return T, (index + 1) % 64

    monkeypatch.setattr(compare, "select_middle", off_by_one)
    verdict = compare.selection_is_exact(middle, scores, 3, **given)
    assert not verdict.passed and "index" in verdict.detail


def test_choose_ranks_special_values() -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, 1.0, -inf], [1.0, nan, inf], [0.0, -0.0, 1.0]])
    # inf, then the three ones, then the zeros by index (0 and -0 tie), -inf, and NaN last
    assert compare.choose(scores, 1, None).tolist() == [5]
    assert compare.choose(scores, 2, None).tolist() == [1, 3, 5, 8]
    assert compare.choose(scores, 2, torch.tensor([8, 0, 1, 2])).tolist() == [8, 3, 1, 5]


def test_long_double_formulas_are_the_derivatives() -> None:
    """Against central differences of its own forward pass: blocks, dropout, bias and base."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "x": normal(3, 6),
        "weight": normal(5, 6),
        "A": normal(2, 4),
        "T": normal(2, 2),
        "B": normal(2, 2),
        "bias": normal(5),
        "base": normal(3, 5),
    }
    options = {
        "scale": 0.7,
        "block": 2,
        "in_index": torch.tensor([0, 2]),
        "out_index": torch.tensor([1]),
        "dropout_p": 0.4,
        "training": True,
    }
    grad, seed = normal(3, 5), torch.tensor([123])

    def value(changed: dict[str, torch.Tensor]) -> np.longdouble:
        y = long_double_results(changed, options, grad, seed=seed)["y"]
        return (y * long_double(grad)).sum()

    results = long_double_results(tensors, options, grad, seed=seed)
    step = 2.0**-10
    for name, tensor in tensors.items():
        numeric = np.empty(tensor.shape)
        for place in np.ndindex(*tensor.shape):
            ends = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved[place] += sign * step
                ends.append(value({**tensors, name: moved}))
            numeric[place] = (ends[0] - ends[1]) / (2 * step)
        # The value is a polynomial of degree at most 2 in one tensor: differences are exact.
        np.testing.assert_allclose(
            np.asarray(results[f"d{name}"], dtype=np.float64), numeric, rtol=0, atol=1e-9
        )
