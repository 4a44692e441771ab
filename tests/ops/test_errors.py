"""Bad input: ValueError or TypeError in one line that names the argument, expected and got."""

from __future__ import annotations

import pytest
import torch

from fedkernels import (
    TripleLoraLinear,
    fold_middle,
    select_middle,
    triple_lora_delta,
    triple_lora_linear,
)
from fedkernels._backend import BackendUnavailable
from fedkernels.triple_lora import api
from tests.ops.kit import BACKENDS, call

pytestmark = pytest.mark.once

f32, f64, i64 = torch.float32, torch.float64, torch.int64


def ones(*shape: int, dtype: torch.dtype = f32, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def index(*values: int, dtype: torch.dtype = i64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


# x (9, 40), weight (24, 40), A (5, 40), T (5, 5), B (24, 5), bias (24,)
LINEAR = [
    ({"x": ones(9, 41)}, ValueError, r"x must be .*weight .*got x \(9, 41\) and weight \(24, 40\)"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x must be \(\.\.\., D_in\).*got x \(\)"),
    ({"weight": ones(24)}, ValueError, r"weight \(D_out, D_in\), got .*weight \(24,\)"),
    ({"weight": ones(2, 24, 40)}, ValueError, r"weight \(2, 24, 40\)"),
    ({"A": ones(5, 39)}, ValueError, r"A must be \(5, 40\), got \(5, 39\)"),
    ({"A": ones(40)}, ValueError, r"A must be \(r, D_in\) and B \(D_out, r\), got A \(40,\)"),
    ({"A": ones(4, 40)}, ValueError, r"got A \(4, 40\) and B \(24, 5\)"),
    ({"B": ones(23, 5)}, ValueError, r"B must be \(24, 5\), got \(23, 5\)"),
    ({"B": ones(24)}, ValueError, r"B \(24,\)"),
    ({"T": ones(4, 5)}, ValueError, r"T must be \(5, 5\) to fit A .*got \(4, 5\)"),
    ({"T": ones(5)}, ValueError, r"T must be \(5, 5\).*got \(5,\)"),
    ({"bias": ones(23)}, ValueError, r"bias must be \(24,\), got \(23,\)"),
    ({"bias": ones(1, 24)}, ValueError, r"bias must be \(24,\), got \(1, 24\)"),
    ({"x": ones(9, 40, dtype=i64)}, TypeError, r"x must be float32.*got torch\.int64"),
    ({"x": ones(9, 40, dtype=torch.complex64)}, TypeError, r"x must be .*complex64"),
    ({"x": ones(9, 40, dtype=f64)}, TypeError, r"weight must have x's dtype torch\.float64, got "),
    ({"weight": ones(24, 40, dtype=torch.bfloat16)}, TypeError, r"weight must .*bfloat16"),
    ({"bias": ones(24, dtype=f64)}, TypeError, r"bias must have x's dtype .*got torch\.float64"),
    ({"A": ones(5, 40, dtype=f64)}, TypeError, r"A must be torch\.float32 .*got torch\.float64"),
    ({"T": ones(5, 5, dtype=torch.float16)}, TypeError, r"T must be .*got torch\.float16"),
    ({"B": ones(24, 5, dtype=i64)}, TypeError, r"B must be .*got torch\.int64"),
    *(
        (
            {name: ones(*shape, device="meta")},
            ValueError,
            rf"{name} must be on x's device cpu, got meta",
        )
        for name, shape in {
            "weight": (24, 40), "A": (5, 40), "T": (5, 5), "B": (24, 5), "bias": (24,)
        }.items()
    ),
    ({"in_index": torch.zeros(1, dtype=i64, device="meta")}, ValueError, "in_index must be on x's"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p must be between 0 and 1, got -0.1"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p must be between 0 and 1, got 1.5"),
    ({"dropout_p": float("nan")}, ValueError, "dropout_p must be between 0 and 1, got nan"),
    ({"scale": "2"}, TypeError, "scale must be a number, got str"),
    ({"scale": torch.tensor(2.0)}, TypeError, "scale must be a number, got Tensor"),
    ({"dropout_p": "a"}, TypeError, "dropout_p must be a number, got str"),
    ({"x": [1.0, 2.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": ones(9, 40).to_sparse()}, TypeError, "x must be a dense .*got torch.sparse_coo"),
    ({"in_index": index(0), "block": 0}, ValueError, "block must be at least 1 .*got 0"),
    ({"in_index": index(0), "block": 8.0}, TypeError, "block must be an int, got float"),
    ({"in_index": index(0), "block": 2**62}, ValueError, r"block must be .*below 2\^31, got"),
    ({"out_index": index(0), "block": -3}, ValueError, "block must be at least 1 .*got -3"),
    ({"in_index": index(0, dtype=torch.int32)}, ValueError, r"in_index .*1-D int64.*got .*int32"),
    ({"in_index": index(0)[None]}, ValueError, r"in_index must be a 1-D int64.*\(1, 1\)"),
    *(
        (
            {name: index(*wrong), "block": 8},
            ValueError,
            rf"{name} must be sorted, unique and within \[0, {blocks}\).*got \[",
        )
        for name, blocks in (("in_index", 5), ("out_index", 3))
        for wrong in ((1, 0), (1, 1), (-1, 0), (0, 5), (7,))
    ),
    (
        {"in_index": index(0, 4), "block": 8},
        ValueError,
        r"A must be \(5, 16\) \(the widths of the active blocks\), got \(5, 40\)",
    ),
    ({"out_index": index(0), "block": 8}, ValueError, r"B must be \(8, 5\) \(the widths"),
]  # fmt: skip


def _one_line(raised) -> None:
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "error", "message"), LINEAR)
def test_linear(change, error, message, backend):
    c = call((9,))
    with pytest.raises(error, match=message) as raised:
        triple_lora_linear(**{**c.tensors, **c.options, **change}, backend=backend)
    _one_line(raised)


DELTA = [
    ({"x": torch.tensor(1.0)}, ValueError, r"x must be \(\.\.\., D_in\), got \(\)"),
    ({"B": ones(24)}, ValueError, r"B must be \(D_out, r\), got \(24,\)"),
    ({"A": ones(5, 39)}, ValueError, r"A must be \(5, 40\), got \(5, 39\)"),
    ({"base": ones(8, 24)}, ValueError, r"base must be .*x \(9, 40\) and base \(8, 24\)"),
    ({"base": ones(24)}, ValueError, r"base must be .*base \(24,\)"),
    ({"base": ones(9, 23)}, ValueError, r"B must be \(23, 5\), got \(24, 5\)"),
    ({"base": ones(9, 24, dtype=f64)}, TypeError, r"base must have x's dtype .*float64"),
    ({"base": ones(9, 24, device="meta")}, ValueError, "base must be on x's device cpu, got meta"),
    ({"base": ones(9, 24), "out_features": 25}, ValueError, "out_features is 25, but base has 24"),
    ({"out_features": 25}, ValueError, r"B must be \(25, 5\), got \(24, 5\)"),
    ({"out_index": index(0), "block": 24}, ValueError, "out_index without base needs out_features"),
    ({"dropout_p": 2}, ValueError, "dropout_p must be between 0 and 1, got 2"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "error", "message"), DELTA)
def test_delta(change, error, message, backend):
    t = call((9,)).tensors
    arguments = {"x": t["x"], "A": t["A"], "T": t["T"], "B": t["B"]}
    with pytest.raises(error, match=message) as raised:
        triple_lora_delta(**{**arguments, **change}, backend=backend)
    _one_line(raised)


def test_fold_middle():
    with pytest.raises(ValueError, match=r"B must be \(D_out, r\), got \(3,\)"):
        fold_middle(ones(3), None)
    with pytest.raises(ValueError, match=r"T must be \(2, 2\) to fit B \(4, 2\), got \(3, 3\)"):
        fold_middle(ones(4, 2), ones(3, 3))
    with pytest.raises(TypeError, match=r"B must be a floating tensor, got torch\.int64"):
        fold_middle(ones(4, 2, dtype=i64), None)
    with pytest.raises(TypeError, match=r"T must have B's dtype .*got torch\.float64"):
        fold_middle(ones(4, 2), ones(2, 2, dtype=f64))
    with pytest.raises(ValueError, match="T must be on B's device cpu, got meta"):
        fold_middle(ones(4, 2), ones(2, 2, device="meta"))


SELECT = [
    ({"middle": ones(4)}, ValueError, r"middle must be \(\.\.\., R, R\), got \(4,\)"),
    ({"middle": ones(4, 5)}, ValueError, r"middle must be .*got \(4, 5\)"),
    ({"middle": [[1.0]]}, TypeError, "middle must be a tensor, got list"),
    ({"rank": 2.0}, TypeError, "rank must be an int, got float"),
    ({"rank": "2"}, TypeError, "rank must be an int, got str"),
    ({"middle": ones(3, 4, 4, dtype=i64)}, TypeError, r"middle must be a floating.*int64"),
    ({"scores": ones(3, 4, 5)}, ValueError, r"scores must have middle's shape .*got \(3, 4, 5\)"),
    ({"scores": ones(4, 4)}, ValueError, r"scores must have middle's shape \(3, 4, 4\), got"),
    ({"scores": ones(3, 4, 4, dtype=i64)}, TypeError, r"scores must be a floating.*int64"),
    ({"scores": ones(3, 4, 4, device="meta")}, ValueError, "scores must be on .*cpu, got meta"),
    ({"scores": None}, ValueError, "select_middle needs scores, or an index"),
    ({"rank": 0}, ValueError, "rank must be between 1 and R = 4, got 0"),
    ({"rank": 5}, ValueError, "rank must be between 1 and R = 4, got 5"),
    ({"rank": -1}, ValueError, "rank must be between 1 and R = 4, got -1"),
    *(
        case
        for name in ("index", "previous")
        for case in (
            ({name: torch.zeros(3, 3, dtype=i64)}, ValueError, rf"{name} must be int64 of shape "),
            ({name: torch.zeros(4, dtype=i64)}, ValueError, rf"{name} must be .*\(3, 4\), got"),
            ({name: torch.zeros(3, 4)}, ValueError, rf"{name} must be int64 .*got torch\.float32"),
            ({name: torch.full((3, 4), 16)}, ValueError, rf"{name} must lie in \[0, 16\)"),
            ({name: torch.full((3, 4), -1)}, ValueError, rf"{name} must lie in \[0, 16\)"),
            (
                {name: torch.zeros(3, 4, dtype=i64, device="meta")},
                ValueError,
                rf"{name} must be on .*cpu, got meta",
            ),
        )
    ),
    (
        {name: torch.zeros(3, 4, dtype=i64) for name in ("index", "previous")},
        ValueError,
        "give index .* or previous .*, not both",
    ),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "error", "message"), SELECT)
def test_select(change, error, message, backend):
    arguments = {"middle": ones(3, 4, 4), "scores": ones(3, 4, 4), "rank": 2}
    with pytest.raises(error, match=message) as raised:
        select_middle(**{**arguments, **change}, backend=backend)
    _one_line(raised)


def test_layer():
    with pytest.raises(TypeError, match=r"base must be an nn\.Linear, got Conv2d"):
        TripleLoraLinear(torch.nn.Conv2d(1, 1, 1), 2)
    base = torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        TripleLoraLinear(base, 0)
    with pytest.raises(TypeError, match="rank must be an int, got float"):
        TripleLoraLinear(base, 2.5)
    with pytest.raises(ValueError, match="dropout_p must be between 0 and 1, got 2"):
        TripleLoraLinear(base, 1, dropout_p=2)
    layer = TripleLoraLinear(base, 1)
    with pytest.raises(ValueError, match=r"got x \(2, 4\) and weight \(4, 3\)"):
        layer(ones(2, 4))
    with pytest.raises(ValueError, match="backend must be one of"):
        TripleLoraLinear(base, 1, backend="metal")(ones(2, 3))


OPS = {
    "triple_lora_linear": lambda **o: call((9,)).y(**o),
    "triple_lora_delta": lambda **o: triple_lora_delta(
        ones(2, 3), ones(1, 3), None, ones(4, 1), **o
    ),
    "select_middle": lambda **o: select_middle(ones(3, 3), ones(3, 3), 2, **o),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_an_unknown_backend_is_answered_with_the_known_ones(op):
    with pytest.raises(ValueError, match=rf"{op}: backend must be one of auto, .*; got 'metal'"):
        OPS[op](backend="metal")


@pytest.mark.parametrize("op", OPS)
def test_an_explicit_cpu_without_the_extension_raises_and_auto_takes_the_reference(op, monkeypatch):
    reference = OPS[op](backend="reference")
    monkeypatch.setattr(api, "is_built", lambda: False)
    monkeypatch.setattr(api, "why_not_built", lambda: "no compiler was found")
    with pytest.raises(
        BackendUnavailable,
        match=rf"{op}: backend 'cpu' cannot run .*cpu: not built: no compiler.*reference: can run",
    ) as raised:
        OPS[op](backend="cpu")
    assert isinstance(raised.value, RuntimeError)
    auto = OPS[op]()
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (auto, reference)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_backend_that_the_op_does_not_have_is_refused_with_every_candidate(op, backend):
    with pytest.raises(BackendUnavailable, match=rf"{op}.*'{backend}'.*cpu: .*reference: can run"):
        OPS[op](backend=backend)


def test_another_device_is_named():
    c = call((9,))
    meta = {n: t.to("meta") for n, t in c.tensors.items()}
    with pytest.raises(BackendUnavailable, match="the tensors are on meta, the kernel runs on the"):
        triple_lora_linear(**meta, backend="cpu")
    with pytest.raises(BackendUnavailable, match="the tensors are on meta"):
        select_middle(ones(3, 3, device="meta"), ones(3, 3, device="meta"), 2, backend="cpu")
    y = triple_lora_linear(**meta)  # auto: the reference computes shapes there
    assert y.device.type == "meta" and y.shape == (9, 24)
