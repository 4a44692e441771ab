"""Bad input of the prototype functions: one line each."""

from __future__ import annotations

import pytest
import torch

import fedkernels
from fedkernels import BackendUnavailable
from tests.ops.prototype.kit import backends

pytestmark = pytest.mark.once
ones, zeros = torch.ones, torch.zeros
GOOD = {
    "distance": {},
    "assign": {},
    "softmax": {},
    "cross_entropy": {"target": torch.tensor([0, 1, 2, 3, 0, 1])},
}
NAN = float("nan")


def bad(message, error=ValueError, only=None, **change):
    return pytest.param(only, change, error, message, id=f"{only or 'all'}-{message[:48]}")


BAD = [
    bad("x must be a tensor, got list", TypeError, x=[1.0]),
    bad("prototypes must be a tensor, got NoneType", TypeError, prototypes=None),
    bad(r"x and prototypes must be \(N, D\) and \(K, D\), got x \(6,\)", x=ones(6)),
    bad(r"got x \(2, 6, 3\) and prototypes \(4, 3\)", x=ones(2, 6, 3)),
    bad(r"got x \(6, 3\) and prototypes \(4, 5\)", prototypes=ones(4, 5)),
    bad("prototypes must have at least one row", prototypes=ones(0, 3)),
    bad("x must be float32, .*got torch.int64", TypeError, x=ones(6, 3, dtype=torch.int64)),
    bad("prototypes must be float32, .*got torch.bool", TypeError, prototypes=ones(4, 3) > 0),
    bad(
        "prototypes must be float32 or narrower to go with x in torch.float32, got float64",
        TypeError,
        prototypes=ones(4, 3, dtype=torch.float64),
    ),
    bad("prototypes must be on x's device cpu, got meta", prototypes=ones(4, 3, device="meta")),
    bad("x must be a dense .*got torch.sparse_coo", TypeError, x=ones(6, 3).to_sparse()),
    bad("metric must be one of sqeuclidean, .*; got 'l1'", metric="l1"),
    bad("metric must be one of sqeuclidean, .*; got 2", metric=2),
    bad(r"metric must be one of sqeuclidean, .*; got \['dot'\]", metric=["dot"]),
    bad("backend must be one of", backend="gpu"),
    bad("the kernel runs on CUDA", BackendUnavailable, backend="cuda"),
    bad("k must be between 1 and 32, got 0", only="assign", k=0),
    bad("k must be between 1 and 32, got 33", only="assign", k=33),
    bad("k must be an int, got float", TypeError, only="assign", k=1.0),
    *(
        case
        for only in ("assign", "softmax", "cross_entropy")
        for case in (
            bad(r"mask must be \(4,\) or \(6, 4\), got \(6,\)", only=only, mask=ones(6) > 0),
            bad(r"mask must be \(4,\) or \(6, 4\), got \(1, 4\)", only=only, mask=ones(1, 4) > 0),
            bad("mask must be bool .*got torch.float32", TypeError, only=only, mask=ones(4)),
            bad("mask must be a tensor, got list", TypeError, only=only, mask=[True] * 4),
            bad(
                "mask must be on x's device cpu, got meta",
                only=only,
                mask=ones(4, device="meta") > 0,
            ),
        )
    ),
    *(
        case
        for only in ("softmax", "cross_entropy")
        for case in (
            bad("temperature must be positive and finite, got 0.0", only=only, temperature=0.0),
            bad("temperature must be positive and finite, got -1", only=only, temperature=-1),
            bad("temperature must be positive and finite, got nan", only=only, temperature=NAN),
            bad(
                "temperature must be positive and finite, got inf",
                only=only,
                temperature=float("inf"),
            ),
            bad("temperature must be a number, got str", TypeError, only=only, temperature="1"),
            bad("temperature must be a number, got T", TypeError, only=only, temperature=ones(())),
            bad(r"log_prior must be \(4,\), got \(6,\)", only=only, log_prior=ones(6)),
            bad(
                "log_prior must be float32, .*got torch.int64",
                TypeError,
                only=only,
                log_prior=ones(4).long(),
            ),
        )
    ),
    *(
        bad(message, error, only="cross_entropy", **change)
        for message, error, change in (
            ("got 4 in row 2", ValueError, {"target": torch.tensor([0, 1, 4, 3, 0, 9])}),
            (
                "target must hold classes from 0 to 3, or ignore_index -100; got -1 in row 5",
                ValueError,
                {"target": torch.tensor([0, 1, -100, 3, 0, -1])},
            ),
            (r"target must be labels \(6,\) or soft", ValueError, {"target": zeros(5).long()}),
            (r"soft labels \(6, 4\), got \(6, 3\)", ValueError, {"target": ones(6, 3)}),
            (
                r"target \(6,\) must hold integer labels, got torch.float32",
                TypeError,
                {"target": zeros(6)},
            ),
            (
                r"target \(6,\) must hold integer labels, got torch.bool",
                TypeError,
                {"target": zeros(6) > 0},
            ),
            (
                r"target \(6, 4\) must hold soft labels of a floating dtype, got torch.int64",
                TypeError,
                {"target": zeros(6, 4).long()},
            ),
            (
                "target is a constant .*pass target.detach",
                ValueError,
                {"target": ones(6, 4).requires_grad_()},
            ),
            (
                "target must be on x's device cpu, got meta",
                ValueError,
                {"target": zeros(6, device="meta").long()},
            ),
            (
                "class_weight must not be negative or NaN, got -2.0 at 1",
                ValueError,
                {"class_weight": torch.tensor([1.0, -2.0, 1.0, -3.0])},
            ),
            (
                "class_weight must not be negative or NaN, got nan at 2",
                ValueError,
                {"class_weight": torch.tensor([1.0, 2.0, NAN, 1.0])},
            ),
            (r"class_weight must be \(4,\), got \(3,\)", ValueError, {"class_weight": ones(3)}),
            (
                "class_weight is a constant",
                ValueError,
                {"class_weight": ones(4).requires_grad_()},
            ),
            ("ignore_index must be an int, got float", TypeError, {"ignore_index": 1.0}),
            (
                "reduction must be one of none, .*; got 'max'",
                ValueError,
                {"reduction": "max"},
            ),
        )
    ),
]


@pytest.mark.parametrize(("only", "change", "error", "message"), BAD)
def test_bad_input_is_one_line(only, change, error, message):
    for function in GOOD if only is None else (only,):
        arguments = {"x": ones(6, 3), "prototypes": ones(4, 3), **GOOD[function], **change}
        with pytest.raises(error, match=message) as raised:
            getattr(fedkernels, f"prototype_{function}")(**arguments)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", backends("cross_entropy"))
def test_a_bad_label_is_found_before_a_gradient_is_taken(backend):
    x = ones(6, 3).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 0, 7])
    for reduction in ("none", "sum", "mean"):
        with pytest.raises(ValueError, match="got 7 in row 5"):
            fedkernels.prototype_cross_entropy(
                x, ones(4, 3), target, reduction=reduction, backend=backend
            )


def test_what_is_legal_is_not_refused():
    x, mu = ones(6, 3), ones(4, 3)
    target = GOOD["cross_entropy"]["target"]
    loss = fedkernels.prototype_cross_entropy
    assert loss(x, mu, target, ignore_index=2, class_weight=zeros(4).double()).isnan()
    assert loss(x, mu, target, log_prior=ones(4, dtype=torch.bfloat16)).isfinite()
    assert loss(x.half(), mu.bfloat16(), target, temperature=2).dtype == torch.float32
    assert loss(x.double(), mu, target).dtype == torch.float64
