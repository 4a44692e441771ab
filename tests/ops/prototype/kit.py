"""What the tests of prototypes share: a call as data, its results, and what they have to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedkernels
from fedkernels._extension import _registers
from fedkernels.testing import error_budget, long_double, random_tensor
from tests.ops.prototype import dense

METRICS = dense.METRICS
REFERENCE = pytest.param("reference", marks=pytest.mark.once)
LEAVES = ("x", "prototypes", "log_prior")
OUTPUTS = {
    "distance": ("distance",),
    "assign": ("distance",),
    "softmax": ("prob", "lse", "mass"),
    "cross_entropy": ("loss",),
}


def needs_kernel(*functions: str) -> pytest.MarkDecorator:
    missing = [f for f in functions if not _registers(f"prototype_{f}", "CPU")]
    return pytest.mark.skipif(bool(missing), reason=f"no compiled {', '.join(missing)} here")


def cpu(*functions: str) -> Any:
    return pytest.param("cpu", marks=needs_kernel(*functions))


def backends(*functions: str) -> tuple[Any, Any]:
    return cpu(*functions), REFERENCE


@dataclass(frozen=True)
class Call:
    """A public function of the family (by its name without `prototype_`) and its arguments."""

    function: str
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]

    def run(self, **more: Any) -> Any:
        function = getattr(fedkernels, f"prototype_{self.function}")
        return function(**self.tensors, **{**self.options, **more})

    def change(self, **tensors: Tensor | None) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def rows(self, rows: Any) -> Call:
        """The same call for some of the points."""
        n = self.tensors["x"].shape[0]
        cut = {
            name: t[rows]
            for name, t in self.tensors.items()
            if t is not None and name in ("x", "target", "mask") and t.shape[0] == n
        }
        return self.change(**cut)

    def train(self, *names: str) -> Call:
        """The same values as new leaves, of which `names` (all, if none) require gradients."""
        wanted = names or LEAVES
        leaves = {
            n: t.detach().clone().requires_grad_(n in wanted)
            for n, t in self.tensors.items()
            if n in LEAVES and t is not None
        }
        return self.change(**leaves)

    def widened(self, dtype: torch.dtype = torch.float64) -> Call:
        moved = {
            n: t.detach().to(dtype)
            for n, t in self.tensors.items()
            if t is not None and t.is_floating_point()
        }
        return self.change(**moved)

    def outputs(self, **more: Any) -> dict[str, Tensor]:
        found = self.run(**more)
        if isinstance(found, Tensor):
            return {OUTPUTS[self.function][0]: found}
        named = {n: getattr(found, n) for n in OUTPUTS[self.function]}
        return {n: t for n, t in named.items() if t is not None}

    def results(self, **more: Any) -> dict[str, Tensor]:
        """The outputs, and every gradient of their sum under fixed weights."""
        call = self.train()
        outputs = call.outputs(**more)
        leaves = {n: t for n, t in call.tensors.items() if n in LEAVES and t is not None}
        upstream = [upstream_of(n, t) for n, t in outputs.items()]
        grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
        named = {n: t.detach() for n, t in outputs.items()}
        return {**named, **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}

    def exact(self) -> dict[str, Any]:
        """The same without rounding: in float64, for float64 in long double."""
        if self.tensors["x"].dtype == torch.float64:
            return self.dense()
        return self.widened().results(backend="reference")

    def dense(self) -> dict[str, np.ndarray]:
        """The same in long double, from the independent statement (not for `assign`)."""
        raw = {
            n: None if t is None else long_double(t) if t.is_floating_point() else t.numpy()
            for n, t in self.tensors.items()
        }
        x, mu, metric = raw["x"], raw["prototypes"], self.options.get("metric", METRICS[0])
        distance = dense.distances(x, mu, metric)

        def given(name: str, shape: Sequence[int]) -> np.ndarray:
            wide = torch.float64 if x.dtype == np.longdouble else torch.float32
            return long_double(upstream_of(name, torch.empty(tuple(shape), dtype=wide)))

        if self.function == "distance":
            return {"distance": distance} | _named(
                dense.pull(x, mu, metric, given("distance", distance.shape))
            )
        temperature = self.options.get("temperature", 1.0)
        logit = dense.logits(distance, temperature, raw.get("log_prior"), raw.get("mask"))
        if self.function == "softmax":
            prob, lse = dense.softmax(logit)
            found = {"prob": prob, "lse": lse, "mass": prob.sum(0)}
            pull = dense.pull_softmax(prob, *(given(n, t.shape) for n, t in found.items()))
        else:
            weight = dense.weights(
                raw["target"], len(mu), raw.get("class_weight"), self.options["ignore_index"]
            )
            reduction = self.options["reduction"]
            loss, pull = dense.cross_entropy(logit, weight, reduction)
            upstream = given("loss", loss.shape)
            pull = pull * (upstream[:, None] if reduction == "none" else upstream)
            found = {"loss": loss}
        grads = _named(dense.pull(x, mu, metric, -pull / np.longdouble(temperature)))
        if raw.get("log_prior") is not None:
            grads["dlog_prior"] = pull.sum(0)
        return found | grads


def _named(grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"dx": grads["dx"], "dprototypes": grads["dmu"]}


def upstream_of(name: str, like: Tensor) -> Tensor:
    return random_tensor(like.shape, dtype=like.dtype, seed=len(name) + 70)


def call(
    function: str,
    n: int,
    k: int,
    d: int,
    *,
    metric: str = "sqeuclidean",
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
    spread: float = 8.0,
    prior: bool = True,
    mask: str | None = None,
    soft: bool = False,
    weighted: bool = False,
    nearest: int = 1,
    **options: Any,
) -> Call:
    """Points of a network's size, at a temperature under which logits have a range of `spread`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = random_tensor((n, d), dtype=dtype, seed=seed, layout=layout)
    mu = random_tensor((k, d), dtype=wide, seed=seed + 1, layout=layout)
    tensors: dict[str, Tensor | None] = {"x": x, "prototypes": mu}
    options = {"metric": metric, **options}
    generator = torch.Generator().manual_seed(seed + 9)
    if function != "distance" and mask is not None:
        shape = {"shared": (k,), "rows": (n, k)}[mask]
        allowed = torch.rand(shape, generator=generator) > 0.3
        if mask == "rows":
            allowed[3::7] = False
        else:
            allowed[0] = True
        tensors["mask"] = allowed
    if function in ("softmax", "cross_entropy"):
        options["temperature"] = _range(metric, d) / spread
        if prior:
            tensors["log_prior"] = random_tensor((k,), dtype=wide, seed=seed + 2)
    if function == "assign":
        options["k"] = nearest
    if function == "cross_entropy":
        options = {"reduction": "mean", "ignore_index": -100, **options}
        if soft:
            target = random_tensor((n, k), dtype=torch.float64, seed=seed + 3).softmax(1).to(wide)
        else:
            target = torch.randint(0, k, (n,), generator=generator)
            target[2::5] = options["ignore_index"]
        if mask is not None:  # hit nothing that is masked
            allowed = tensors["mask"].expand(n, k)
            if soft:
                target = torch.where(allowed, target, 0.0)
            else:
                hit = allowed.gather(1, target.clamp(0, k - 1)[:, None])[:, 0]
                target = torch.where(hit | (target < 0), target, allowed.int().argmax(1))
        tensors["target"] = target
        if weighted:
            tensors["class_weight"] = random_tensor((k,), dtype=wide, seed=seed + 4).abs()
    return Call(function, tensors, options)


def _range(metric: str, d: int) -> float:
    """About what distances of normal points span."""
    width = max(d, 1) ** 0.5
    return {"sqeuclidean": 6 * width, "euclidean": 3.0, "cosine": 4 / width, "dot": 6 * width}[
        metric
    ]


def rounding_size(c: Call) -> float:
    """The largest term of a logit before terms cancel: |x'|^2 + |mu'|^2, |x| |mu| or 1, over t."""
    if 0 in c.tensors["x"].shape:
        return 1.0
    x, mu = (c.tensors[n].detach().double() for n in ("x", "prototypes"))
    metric = c.options["metric"]
    if metric == "cosine":
        term = 1.0
    elif metric == "dot":
        term = float(x.norm(dim=1).amax() * mu.norm(dim=1).amax())
    else:
        centre = mu.mean(0)
        term = float((x - centre).square().sum(1).amax() + (mu - centre).square().sum(1).amax())
        term = term**0.5 if metric == "euclidean" else term
    return 1.0 + term / c.options.get("temperature", 1.0)


def assert_right(calls: Call | Sequence[Call], backend: str, note: object = "") -> None:
    """Within the error budget, plus what the largest logit's roundings do to its exponential.

    The exponential of a logit is off by as many roundings as the terms of the logit are large, in
    whatever order a product is summed. The specification's own error measures that badly where
    there are few pairs, so so many roundings are added (float64: through the length of the sum),
    and small problems come many at a time. Rows are no measure: those of a gradient are sums of
    both signs, an lse may be near 0.
    """
    calls = [calls] if isinstance(calls, Call) else list(calls)
    function = calls[0].function
    # A gradient of a distance is the difference of two sums, each of the size of the other.
    size = 4.0 if function in ("distance", "assign") else max(map(rounding_size, calls))
    n, k, d = (*calls[0].tensors["x"].shape, len(calls[0].tensors["prototypes"]))
    actual = _together([c.results(backend=backend) for c in calls])
    near = (
        actual
        if backend == "reference"
        else _together([c.results(backend="reference") for c in calls])
    )
    exact = _together([c.exact() for c in calls])
    assert actual.keys() == exact.keys(), note
    for name, result in actual.items():
        length = 4 * (d + n + k) * 8 + (4 * size) ** 2
        report = error_budget(result, near[name], exact[name], name=name, sum_length=int(length))
        assert report.problem is None, (note, report.message())
        half = torch.finfo(result.dtype).bits == 16  # rounded once or twice, from float32
        # Two right orders of a sum over n rows differ by some sqrt(n) / 2 roundings of its terms.
        over_rows = n**0.5 / 2 if name in ("dprototypes", "dlog_prior") else 0.0
        more = 0.0 if half else (size + over_rows) * float(torch.finfo(result.dtype).eps)
        finite = np.asarray(exact[name])[np.isfinite(np.asarray(exact[name]))]
        if not finite.size:
            continue
        sizes = {"max": abs(finite).max(), "rms": (finite * finite).mean() ** 0.5}
        for measure in report.measures:
            allowed = measure.allowed + more * float(sizes.get(measure.name, 1.0))
            assert measure.error <= allowed, (note, measure.name, report.message())


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Each result of all calls as one row."""
    found: dict[str, Any] = {}
    for name in results[0]:
        rows = [r[name].reshape(1, -1) for r in results]
        found[name] = torch.cat(rows, 1) if isinstance(rows[0], Tensor) else np.concatenate(rows, 1)
    return found
