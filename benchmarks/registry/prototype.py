"""The entries of `prototype`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedkernels import (
    class_mean,
    kmeans,
    prototype_assign,
    prototype_cross_entropy,
    prototype_distance,
    prototype_softmax,
)

from ..peers import Contender, Peer, without_recording
from ..peers import prototype as p
from ..problems import (
    ClusterProblem,
    MeanProblem,
    PrototypeProblem,
    cluster_problem,
    mean_problem,
    prototype_problem,
)
from .entry import FORWARD, FORWARD_BACKWARD, GATE_TEST, Case, Entry, Goal, Results, Sizes
from .prototype_gates import (
    kmeans_is_lloyd,
    mean_within_budget,
    nearest_within_budget,
    results_within_budget,
)

__all__ = ["ENTRIES"]

_BIG, _WIDE, _MANY, _SMALL = (
    (65536, 100, 256),
    (200_000, 10, 64),
    (20_000, 1000, 256),
    (256, 10, 64),
)
_SHAPES = (_BIG, _WIDE, _MANY, _SMALL)
_SMALL_NAME = "N256 K10 D64"


def _cases(*shapes: tuple[int, int, int], **more: int) -> tuple[Case, ...]:
    return tuple(
        Case(
            " ".join(f"{letter}{size}" for letter, size in {**sizes, **more}.items()),
            {**sizes, **more},
        )
        for sizes in (dict(zip("NKD", shape, strict=True)) for shape in shapes)
    )


def _problem(upstream: bool = False) -> Callable[[Sizes, torch.dtype, str], PrototypeProblem]:
    return lambda sizes, dtype, device: prototype_problem(
        sizes, dtype, device=device, upstream=upstream
    )


def _close(limit: float) -> Callable[[Any, Results, Results], str | None]:
    """What both name is the same up to rounding, in norm."""

    def same(problem: Any, mine: Results, theirs: Results) -> str | None:
        for name in mine.keys() & theirs.keys():
            a, b = mine[name].detach().double(), theirs[name].detach().double()
            error = float((a - b).norm() / b.norm().clamp(min=1e-30))
            if a.shape != b.shape or not error <= limit:
                return f"{name} differs by {error:.1e} (limit {limit:.0e})"
        return None

    return same


# --- counts -------------------------------------------------------------------------------------


def _product(sizes: Sizes) -> float:
    return 2.0 * sizes["N"] * sizes["K"] * sizes["D"]


def _points(sizes: Sizes) -> int:
    return (sizes["N"] + sizes["K"]) * sizes["D"]


def _pairs(sizes: Sizes) -> int:
    return sizes["N"] * sizes["K"]


def _products(sizes: Sizes, direction: str) -> float:
    """One, and two more for the gradients to x and to the prototypes."""
    return _product(sizes) * (1 if direction == FORWARD else 3)


def _assign_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    # read x and the prototypes; write distance and index
    return _points(sizes) * itemsize + sizes["N"] * sizes.get("k", 1) * (4 + 8)


def _matrix_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    # read the points, write (N, K); then read what comes back for it, write gradients
    once = _points(sizes) * itemsize + 4 * _pairs(sizes)
    return once if direction == FORWARD else 2 * once


def _loss_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    # read the points and the labels; write gradients
    return _points(sizes) * itemsize * (1 if direction == FORWARD else 2) + 8 * sizes["N"]


# --- ours ---------------------------------------------------------------------------------------


def _ours_assign(problem: PrototypeProblem, backend: str) -> Contender:
    x, mu = problem.x.detach(), problem.mu.detach()

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        found = prototype_assign(x, mu, k=problem.nearest, backend=backend)
        return found.distance, found.index

    return Contender(forward, outputs=("distance", "index"))


def _same_assign(problem: PrototypeProblem, mine: Results, theirs: Results) -> str | None:
    """A peer may name another prototype where two are equally near but for its rounding."""
    x, mu = problem.x.detach().double(), problem.mu.detach().double()
    scale = x.square().sum(1, keepdim=True) + mu.square().sum(1).max()
    true = [(x[:, None] - mu[found["index"]]).square().sum(2) for found in (mine, theirs)]
    worst = float(((true[0] - true[1]).abs() / scale).max())
    if not worst <= 1e-6:
        return f"distances of the chosen differ by {worst:.1e} of the squares (limit 1e-06)"
    error = float(((theirs["distance"].double() - true[1]).abs() / scale).max())
    return None if error <= 1e-5 else f"distance is wrong by {error:.1e} (limit 1e-05)"


def _differentiable(
    problem: PrototypeProblem,
    forward: Callable[[], Any],
    outputs: tuple[str, ...],
    upstream: tuple[torch.Tensor | None, ...] = (),
) -> Contender:
    def step() -> tuple[torch.Tensor, ...]:
        found = forward()
        found = found if isinstance(found, tuple) else (found,)
        return (*found, *torch.autograd.grad(found, (problem.x, problem.mu), upstream or None))

    return Contender(
        forward,
        step,
        outputs=outputs,
        gradients=("dx", "dmu"),
        parameters=(problem.x, problem.mu),
    )


def _ours_distance(problem: PrototypeProblem, backend: str) -> Contender:
    return _differentiable(
        problem,
        lambda: prototype_distance(problem.x, problem.mu, backend=backend),
        ("distance",),
        (problem.upstream,),
    )


def _ours_softmax(problem: PrototypeProblem, backend: str) -> Contender:
    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        found = prototype_softmax(
            problem.x, problem.mu, temperature=problem.temperature, backend=backend
        )
        assert found.prob is not None
        return found.prob, found.mass

    return _differentiable(
        problem, forward, ("prob", "mass"), (problem.upstream, problem.upstream_mass)
    )


def _ours_cross_entropy(problem: PrototypeProblem, backend: str) -> Contender:
    def forward() -> torch.Tensor:
        return prototype_cross_entropy(
            problem.x, problem.mu, problem.label, temperature=problem.temperature, backend=backend
        )

    # Ours finds the gradients in the forward pass: that alone is timed as an evaluation.
    return without_recording(_differentiable(problem, forward, ("loss",)))


def _ours_mean(problem: MeanProblem, backend: str) -> Contender:
    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        found = class_mean(problem.x, problem.label, problem.classes, backend=backend)
        return found.mean, found.count

    return Contender(forward, outputs=("mean", "count"))


def _ours_kmeans(problem: ClusterProblem, backend: str) -> Contender:
    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        found = kmeans(
            problem.x,
            len(problem.start),
            init=problem.start,
            max_iter=problem.iterations,
            tol=0.0,
            backend=backend,
        )
        return found.centers, torch.as_tensor(found.inertia)

    return Contender(forward, outputs=("centers", "inertia"))


def _same_kmeans(problem: ClusterProblem, mine: Results, theirs: Results) -> str | None:
    """A point between two centres goes one way or the other by rounding; the sum hardly moves."""
    a, b = float(mine["inertia"]), float(theirs["inertia"])
    error = abs(a - b) / b
    return None if error <= 1e-4 else f"inertia differs by {error:.1e} (limit 1e-04)"


# --- entries ------------------------------------------------------------------------------------

_COMMON: dict[str, Any] = {"family": "prototype", "dtypes": ("float32",), "gate_test": GATE_TEST}


def _assign(name: str, cases: tuple[Case, ...], quick: tuple[Case, ...], **more: Any) -> Entry:
    return Entry(
        name=name,
        op="prototype_assign",
        cases=cases,
        quick=quick,
        directions=(FORWARD,),
        problem=_problem(),
        ours=_ours_assign,
        gate=nearest_within_budget,
        bytes_moved=_assign_bytes,
        flops=lambda sizes, direction: _product(sizes),
        same=_same_assign,
        **more,
        **_COMMON,
    )


def _never_slower(*peers: Peer) -> tuple[Goal, ...]:
    """Small calls are not slower than what one writes in PyTorch, forward and with the backward."""
    return tuple(
        Goal(peer, 1.0, direction=direction, cases=(_SMALL_NAME,))
        for peer in peers
        for direction in (FORWARD, FORWARD_BACKWARD)
    )


def _mean_entry(labels: str) -> Entry:
    name = {"skewed": "90 % of the rows in one class"}.get(labels, f"{labels} labels")
    return Entry(
        name=f"class_mean, {name}",
        op="class_mean",
        cases=_cases(_BIG, _WIDE, _SMALL),
        quick=_cases((16384, 100, 128)),
        directions=(FORWARD,),
        peers=tuple(p.MEAN.values()),
        goals=(
            Goal(
                p.MEAN["index_add"], 1.5, direction=FORWARD,
                cases=tuple(case.name for case in _cases(_BIG, _WIDE)),
            ),
            Goal(p.MEAN["index_add"], 1.0, direction=FORWARD, cases=(_SMALL_NAME,)),
        ),
        problem=lambda sizes, dtype, device: mean_problem(
            sizes, dtype, device=device, labels=labels
        ),
        ours=_ours_mean,
        gate=mean_within_budget,
        bytes_moved=lambda sizes, direction, itemsize: _points(sizes) * itemsize + 8 * sizes["N"],
        flops=lambda sizes, direction: float(sizes["N"] * sizes["D"]),
        same=_close(1e-5),
        **_COMMON,
    )  # fmt: skip


ENTRIES: tuple[Entry, ...] = (
    _assign(
        "prototype_assign",
        _cases(*_SHAPES),
        _cases((16384, 100, 128), _SMALL),
        peers=(*p.ASSIGN.values(), p.BARE),
        goals=(
            Goal(p.CDIST, 4.0, direction=FORWARD, cases=("N65536 K100 D256",)),
            Goal(p.BARE, 1.0, direction=FORWARD, cases=("N65536 K100 D256",)),
            Goal(p.CDIST, 1.0, direction=FORWARD, cases=(_SMALL_NAME,)),
            Goal(p.ASSIGN["addmm"], 1.0, direction=FORWARD, cases=(_SMALL_NAME,)),
        ),
    ),
    _assign(
        "prototype_assign, 8 nearest",
        _cases(_BIG, _MANY, _SMALL, k=8),
        _cases((16384, 100, 128), k=8),
        # scikit-learn's search for one nearest has no k; its neighbours give roots and copies.
        peers=tuple(p.ASSIGN[name] for name in ("cdist", "addmm", "faiss")),
        goals=(),
    ),
    Entry(
        name="prototype_distance",
        op="prototype_distance",
        cases=_cases(_BIG, _WIDE, _SMALL),
        quick=_cases((16384, 100, 128)),
        directions=(FORWARD, FORWARD_BACKWARD),
        peers=tuple(p.DISTANCE.values()),
        goals=_never_slower(*p.DISTANCE.values()),
        problem=_problem(upstream=True),
        ours=_ours_distance,
        gate=results_within_budget("prototype_distance", _ours_distance),
        bytes_moved=_matrix_bytes,
        flops=_products,
        same=_close(1e-4),
        **_COMMON,
    ),
    Entry(
        name="prototype_softmax",
        op="prototype_softmax",
        cases=_cases(*_SHAPES),
        quick=_cases((16384, 100, 128)),
        directions=(FORWARD, FORWARD_BACKWARD),
        peers=tuple(p.SOFTMAX.values()),
        goals=_never_slower(*p.SOFTMAX.values()),
        problem=_problem(upstream=True),
        ours=_ours_softmax,
        gate=results_within_budget("prototype_softmax", _ours_softmax),
        bytes_moved=_matrix_bytes,
        flops=_products,
        exps=lambda sizes, direction: float(_pairs(sizes)),
        same=_close(1e-4),
        **_COMMON,
    ),
    Entry(
        name="prototype_cross_entropy",
        op="prototype_cross_entropy",
        cases=_cases(*_SHAPES),
        quick=_cases((16384, 100, 128), _SMALL),
        directions=(FORWARD, FORWARD_BACKWARD),
        peers=tuple(p.CROSS_ENTROPY.values()),
        goals=(
            Goal(p.CROSS_ENTROPY["addmm"], 3.0, cases=("N65536 K100 D256",)),
            Goal(p.CROSS_ENTROPY["cdist"], 3.0, cases=("N65536 K100 D256",)),
            *_never_slower(p.CROSS_ENTROPY["addmm"], p.CROSS_ENTROPY["cdist"]),
        ),
        problem=_problem(),
        ours=_ours_cross_entropy,
        gate=results_within_budget("prototype_cross_entropy", _ours_cross_entropy),
        bytes_moved=_loss_bytes,
        flops=_products,
        exps=lambda sizes, direction: float(_pairs(sizes)),
        same=_close(1e-4),
        **_COMMON,
    ),
    *(_mean_entry(labels) for labels in ("random", "sorted", "skewed")),
    Entry(
        name="kmeans, 10 iterations",
        op="kmeans",
        cases=_cases((65536, 100, 64), (20_000, 1000, 64), (200_000, 10, 64), iterations=10),
        quick=_cases((16384, 100, 32), iterations=10),
        directions=(FORWARD,),
        peers=tuple(p.KMEANS.values()),
        goals=(Goal(p.KMEANS["sklearn"], 1.5, direction=FORWARD),),
        problem=lambda sizes, dtype, device: cluster_problem(sizes, dtype, device=device),
        ours=_ours_kmeans,
        gate=kmeans_is_lloyd,
        bytes_moved=lambda sizes, direction, itemsize: (
            _points(sizes) * itemsize * (sizes["iterations"] + 1)
        ),
        # the centres that are returned are looked at once more, for labels and inertia
        flops=lambda sizes, direction: _product(sizes) * (sizes["iterations"] + 1),
        same=_same_kmeans,
        unit=("point-iteration", lambda sizes: sizes["N"] * sizes["iterations"]),
        **_COMMON,
    ),
)
