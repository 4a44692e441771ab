"""Public functions of the family: checks, backend, autograd. The mathematics is in README.md."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedkernels._backend import Candidate, resolve
from fedkernels._candidates import candidates
from fedkernels.transport import autograd, check, ops, reference
from fedkernels.transport.conditional import CANDIDATES as _CONDITIONAL_CANDIDATES
from fedkernels.transport.emd import CANDIDATES as _EMD_CANDIDATES
from fedkernels.transport.problem import Problem, Settings, build, total, valid
from fedkernels.transport.result import Divergence, SinkhornResult, TransportStatus, report

_CANDIDATES = candidates("sinkhorn_forward")
_POINTS_CANDIDATES = candidates("sinkhorn_points_forward")

# What `fedkernels info` lists: op -> the candidates, in the order in which "auto" tries them.
OPS: dict[str, tuple[Candidate, ...]] = {
    "sinkhorn": _CANDIDATES,
    "sinkhorn_points": _POINTS_CANDIDATES,
    "sinkhorn_divergence": _POINTS_CANDIDATES,
    "conditional_transport": _CONDITIONAL_CANDIDATES,
    "emd": _EMD_CANDIDATES,
}

Rho = float | tuple[float | None, float | None] | None
Init = tuple[Tensor, Tensor] | SinkhornResult | None


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float | Tensor,
    rho: Rho = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    mode: str = "auto",
    solver: str = "auto",
    reg_type: str = "kl",
    grad: str = "envelope",
    sizes: Tensor | None = None,
    init: Init = None,
    strict: bool = False,
    backend: str = "auto",
) -> SinkhornResult:
    """Entropic optimal transport of B independent problems, in one fused call.

        min_P  <P, C> + eps KL(P | a x b)   with P 1 = a, P^T 1 = b
        P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)

    Shapes: cost (B, n, m), or (n, m): one for all, and results without a leading B unless a, b, eps
    or sizes has one. a (B, n) or (n,), b (B, m) or (m,): None is uniform over the problem's own
    size, with the other side's total (1 if both are None). sizes (B, 2) int: problem k is the top
    left (n_k, m_k) of its block; the padding may hold anything. eps: a float, or a (B,) tensor that
    gets a gradient. Dtypes: float32, bfloat16, float16 (computed in and returned as float32),
    float64 (cpu and reference).

    rho: None is balanced; a float or (rho_a, rho_b) replaces a side's constraint by rho KL(P 1 | a)
    (None in the pair: that side stays balanced). Balanced totals may differ by 1e-4 of themselves
    (float64: 1e-6), which is scaled away on b.
    tol: a problem stops when the L1 error of its rows is at most tol, each on its own; 0 runs
    exactly max_iter. mode: "log" iterates in the log domain; "absorb" (what "auto" takes) in the
    linear domain, with the scalings folded into the potentials, and "log" where that would be
    inexact. solver: "sinkhorn"; "sor" (over-relaxed, balanced); "auto" is "sor" for a balanced
    problem with tol > 0. reg_type="entropy" changes value and mass gradients to eps sum P log P
    (balanced), and starts where the iterates are those of that convention.
    grad: "envelope" differentiates `value` (to cost, a, b, eps); "implicit" also `linear_cost` and
    `plan()`. Mass gradients of balanced problems are projected (mean 0 over the problem's entries).
    There is no second derivative. init: (f, g) or a result to start from (g is what counts).

    One bad problem changes no other: NaN or inf, a negative mass or totals that do not match end in
    its `status` (`transport.TransportStatus`), value NaN, gradient 0. strict=True raises ValueError
    for those and warns where max_iter was reached; it is the only thing that waits for a GPU.
    Raises ValueError (shapes, ranges), TypeError (dtypes), BackendUnavailable.
    Source: Cuturi 2013 (arXiv 1306.0895); unbalanced: Chizat et al. 2018 (arXiv 1607.05816).

    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> result = sinkhorn(cost, eps=0.1)
    >>> result.plan().round(decimals=3)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    >>> result.status.item() == 0
    True
    """
    check.cost_matrix(cost)
    check.choice("mode", mode, ("auto", "absorb", "log"))
    pair = check.rho_pair(rho)
    check.options(max_iter=max_iter, tol=tol, solver=solver, reg_type=reg_type, grad=grad, rho=pair)
    name = resolve("sinkhorn", backend, _CANDIDATES, cost)
    entropy = reg_type == "entropy"
    problem = build(cost, None, a=a, b=b, eps=eps, sizes=sizes, g0=_start(init), entropy=entropy)
    settings = Settings(_primitives(name), None, pair, entropy, grad == "implicit")
    state = autograd.solve(
        problem,
        settings,
        max_iter=max_iter,
        tol=float(tol),
        log=mode == "log",
        sor=_relaxed(solver, pair, tol),
    )
    if strict:
        report("sinkhorn", state.status, float(tol))
    return SinkhornResult(problem, state, settings)


def sinkhorn_points(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    metric: str = "sqeuclidean",
    eps: float | Tensor,
    rho: Rho = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    mode: str = "auto",
    solver: str = "auto",
    reg_type: str = "kl",
    grad: str = "envelope",
    sizes: Tensor | None = None,
    init: Init = None,
    strict: bool = False,
    backend: str = "auto",
) -> SinkhornResult:
    """`sinkhorn` between points, in bounded memory: products of at most 16 MiB are kept.

        C_ij = |x_i - y_j|^2 ("sqeuclidean"), |x_i - y_j| ("euclidean"), 1 - cos ("cosine")

    x (B, n, D) or (n, D), y (B, m, D) or (m, D); a cloud without B is shared by all. Costs are
    computed from centred points in float32 (no TF32; tight clusters far apart: README.md); the
    cosine cost to a zero vector is 1 with gradient 0, the gradient of a Euclidean distance at 0 is
    0. `value` is differentiable to x, y, a, b and eps in O(n + m) memory; `plan()` holds its (B,
    n, m), `apply(V)` does not. The iteration is in the log domain: mode is "auto" or "log".
    Everything else is as in `sinkhorn`.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> result = sinkhorn_points(x, x + 2.0, eps=0.1)
    >>> round(result.value.item(), 3)  # 4, and eps log 2 for a plan that is nearly a permutation
    4.069
    """
    number = check.points(x, y, metric)
    check.choice("mode (points are iterated in the log domain)", mode, ("auto", "log"))
    pair = check.rho_pair(rho)
    check.options(max_iter=max_iter, tol=tol, solver=solver, reg_type=reg_type, grad=grad, rho=pair)
    name = resolve("sinkhorn_points", backend, _POINTS_CANDIDATES, x)
    entropy = reg_type == "entropy"
    problem = build(x, y, a=a, b=b, eps=eps, sizes=sizes, g0=_start(init), entropy=entropy)
    settings = Settings(_primitives(name), number, pair, entropy, grad == "implicit")
    state = autograd.solve(
        problem,
        settings,
        max_iter=max_iter,
        tol=float(tol),
        sor=_relaxed(solver, pair, tol),
        symmetric=False,
    )
    if strict:
        report("sinkhorn_points", state.status, float(tol))
    return SinkhornResult(problem, state, settings)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    metric: str = "sqeuclidean",
    eps: float | Tensor,
    rho: float | None = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    solver: str = "auto",
    sizes: Tensor | None = None,
    strict: bool = False,
    backend: str = "auto",
) -> Divergence:
    """The debiased transport cost of two clouds: 0 for equal ones, positive otherwise.

        S(a, b) = OT(a, b) - (OT(a, a) + OT(b, b)) / 2 + eps/2 (m_a - m_b)^2

    m_a, m_b are the totals. Arguments as in `sinkhorn_points`; rho is one number for both sides.
    Returns value (B,), differentiable to x, y, a, b and eps, and status (B,), the worst of the
    three problems. Where one of a, b is None it is uniform with the other's total.
    Raises ValueError, TypeError, BackendUnavailable.
    Source: Feydy et al. 2019 (arXiv 1810.08278); unbalanced: Sejourne et al. 2019 (arXiv
    1910.12958).

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> abs(sinkhorn_divergence(x, x, eps=0.1).value.item()) < 1e-6
    True
    """
    number = check.points(x, y, metric)
    if isinstance(rho, tuple | list):
        raise ValueError("rho must be one number for both sides of a divergence, got a pair")
    pair = check.rho_pair(rho)
    check.options(
        max_iter=max_iter, tol=tol, solver=solver, reg_type="kl", grad="envelope", rho=pair
    )
    name = resolve("sinkhorn_divergence", backend, _POINTS_CANDIDATES, x)
    relaxed = _relaxed(solver, pair, tol)
    cross = build(x, y, a=a, b=b, eps=eps, sizes=sizes, g0=None, entropy=False)
    assert cross.right is not None
    first, second = _both_masses(cross)
    values, statuses = [], []
    for left, right, mass_left, mass_right, columns in (
        (cross.left, cross.right, first, second, (0, 1)),
        (cross.left, cross.left, first, first, (0, 0)),
        (cross.right, cross.right, second, second, (1, 1)),
    ):
        part = build(
            left, right, a=mass_left, b=mass_right, eps=cross.eps,
            sizes=None if cross.sizes is None else cross.sizes[:, columns].contiguous(),
            g0=None, entropy=False,
        )  # fmt: skip
        settings = Settings(_primitives(name), number, pair, False, False)
        state = autograd.solve(
            part,
            settings,
            max_iter=max_iter,
            tol=float(tol),
            sor=relaxed and columns == (0, 1),
            symmetric=columns != (0, 1),
        )
        values.append(autograd.costs(part, state, settings)[0])
        statuses.append(state.status)
    value = values[0] - 0.5 * (values[1] + values[2])
    if first is not None and second is not None and not math.isinf(pair[0]):
        gap = _total(first, cross, 0) - _total(second, cross, 1)
        value = value + (0.5 * cross.eps * gap * gap).to(value.dtype)
    status = _worst(*statuses)
    if strict:
        report("sinkhorn_divergence", status, float(tol))
    return (
        Divergence(value.squeeze(0), status.squeeze(0))
        if cross.single
        else Divergence(value, status)
    )


def _primitives(backend: str) -> Any:
    return reference if backend == "reference" else ops.primitives(backend)


def _relaxed(solver: str, rho: tuple[float, float], tol: float) -> bool:
    if solver == "auto":
        return math.isinf(rho[0]) and math.isinf(rho[1]) and tol > 0
    return solver == "sor"


def _start(init: Init) -> Tensor | None:
    if init is None:
        return None
    if isinstance(init, SinkhornResult):
        return init.g
    if not isinstance(init, tuple | list) or len(init) != 2:
        raise TypeError(f"init must be (f, g) or a SinkhornResult, got {type(init).__name__}")
    return init[1]


def _both_masses(cross: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The masses of a and b; where one alone is None it is spread: b with b must know its total."""
    if (cross.a is None) == (cross.b is None):
        return cross.a, cross.b
    given, side, cloud = (cross.a, 0, cross.right) if cross.b is None else (cross.b, 1, cross.left)
    assert given is not None and cloud is not None
    extent = cloud.shape[1]
    mask = valid(cross.sizes, 1 - side, extent)
    count = max(extent, 1) if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
    spread = (_total(given, cross, side)[:, None] / count).to(given.dtype)
    spread = spread.expand(-1, extent).contiguous()
    return (given, spread) if side == 0 else (spread, given)


def _total(mass: Tensor, cross: Problem, side: int) -> Tensor:
    return total(mass, valid(cross.sizes, side, mass.shape[1])).squeeze(1)


def _worst(cross: Tensor, *own: Tensor) -> Tensor:
    """The status of the cross problem, unless one of the others ended worse."""
    worst = cross
    for status in own:
        bad = (status == _NON_FINITE) | (status == _INFEASIBLE)
        later = (status == _MAX_ITER) & (worst == _CONVERGED)
        worst = torch.where(bad | later, status, worst)
    return worst


# As plain numbers: Dynamo compares a tensor with an IntEnum to one bool.
_CONVERGED, _MAX_ITER, _NON_FINITE, _INFEASIBLE = (int(s) for s in list(TransportStatus)[:4])
