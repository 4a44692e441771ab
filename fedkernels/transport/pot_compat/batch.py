"""The functions of `ot.batch` for linear transport."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np  # noqa: F401 (the examples use it)
import torch

from fedkernels.transport import check
from fedkernels.transport.pot_compat.common import Array, iterate, logarithms, refuse, tensors

__all__ = [
    "OTResult",
    "dist_batch",
    "loss_linear_batch",
    "loss_linear_samples_batch",
    "solve_batch",
    "solve_sample_batch",
]

_TINY = 1e-16  # what POT adds inside its logarithms
_METRICS = ("sqeuclidean", "euclidean", "minkowski", "kl")


@dataclass(frozen=True)
class OTResult:
    """POT's result fields, for a batch.

    plan (B, n, m); value, value_linear (B,); potentials: (u, v), or the scalings (e^u, e^v) under
    method="sinkhorn", P = e^(u + v - M/reg); log["n_iter"], as POT counts: the index of the last
    iteration, here of the problem that took longest. status (B,): a `TransportStatus` each.
    """

    value: Array
    value_linear: Array
    plan: Array
    potentials: tuple[Array, Array]
    status: Array
    log: dict[str, Any] = field(default_factory=dict)
    value_quad: None = None
    lazy_plan: None = None

    @property
    def potential_a(self) -> Array:
        return self.potentials[0]

    @property
    def potential_b(self) -> Array:
        return self.potentials[1]

    @property
    def marginal_a(self) -> Array:
        """(B, n), the row sums of each plan (POT sums over another axis for batches)."""
        return self.plan.sum(2)

    @property
    def marginal_b(self) -> Array:
        return self.plan.sum(1)

    @property
    def marginals(self) -> tuple[Array, Array]:
        return self.marginal_a, self.marginal_b


def solve_batch(
    M: Array,
    reg: float | None = None,
    a: Array | None = None,
    b: Array | None = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    method: str = "auto",
    inner_iter: int = 1,
    inner_reg: float = 1e-3,
    reg_type: str = "entropy",
    grad: str = "envelope",
    *,
    solver: str | None = None,
) -> OTResult:
    """`ot.batch.solve_batch`: entropic transport of B problems of one size.

        value = <T, M> + reg sum T log T          (reg_type="entropy")
        value = <T, M> + reg KL(T | a b^T)        ("kl": the same plan)

    M (B, n, m), a (B, n), b (B, m), uniform where None. method: "auto", "log_sinkhorn" and
    "sinkhorn" run here, in one kernel; they differ in `potentials`. grad="envelope" holds the plan
    fixed: M gets T as the gradient of `value` and of `value_linear`, as in POT; "detach" none.

    Raises ValueError (names, ranges, shapes), TypeError (kinds and dtypes), ImportError where POT
    is needed and missing.

    >>> M = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    >>> solve_batch(M, reg=0.5).plan.round(3)
    array([[[0.44, 0.06],
            [0.06, 0.44]]])
    """
    if solver is not None:
        if method != "auto":
            raise TypeError("solve_batch: method and solver (its old name) were both given")
        method = solver
    check.choice("method", method, ("auto", "proximal", "log_sinkhorn", "sinkhorn"))
    check.choice("reg_type", reg_type, ("kl", "entropy"))
    check.choice("grad", grad, ("detach", "autodiff", "last_step", "envelope"))
    if method != "auto" and method != "proximal" and (reg is None or reg <= 0):
        raise ValueError(f"reg must be positive for method={method!r}, got {reg}")
    if method == "auto":
        method = "log_sinkhorn" if reg else "proximal"
    elsewhere = "proximal" if method == "proximal" else grad
    if elsewhere in ("proximal", "autodiff", "last_step"):
        which = "method" if method == "proximal" else "grad"
        return _pot_solve_batch(f"{which}={elsewhere!r}")(
            M, reg, a=a, b=b, max_iter=max_iter, tol=tol, method=method, inner_iter=inner_iter,
            inner_reg=inner_reg, reg_type=reg_type, grad=grad,
        )  # fmt: skip
    refuse("solve_batch", inner_iter=(inner_iter, 1), inner_reg=(inner_reg, 1e-3))

    kind, (cost, mass_a, mass_b) = tensors("solve_batch", M=M, a=a, b=b)
    if cost.dim() != 3:
        raise ValueError(f"M must be (B, n, m), got {tuple(cost.shape)}")
    if grad == "detach":
        cost = cost.detach()
    assert reg is not None
    held_a, held_b = (None if t is None else t.detach() for t in (mass_a, mass_b))
    result = iterate(cost.detach(), held_a, held_b, reg, max_iter, tol)
    plan = result.plan()
    value_linear = (cost * plan).sum((1, 2))
    if reg_type == "entropy":
        term = (plan * (plan + _TINY).log()).sum((1, 2))
    else:
        n, m = cost.shape[1:]
        rows = plan.new_full((n,), 1 / n) if mass_a is None else mass_a
        columns = plan.new_full((m,), 1 / m) if mass_b is None else mass_b
        reference = rows[..., :, None] * columns[..., None, :]
        share = plan / torch.where(reference > 0, reference, 1.0)  # no mass: the plan is 0 there
        term = (plan * (share + _TINY).log()).sum((1, 2))
    value = value_linear + reg * term
    if grad == "detach":
        value = value.detach()
    potentials = logarithms(result, mass_a, mass_b, reg)
    u, v = (p.exp() for p in potentials) if method == "sinkhorn" else potentials
    last = int(result.n_iter.max()) - 1 if len(cost) else 0
    return OTResult(
        value=kind(value),
        value_linear=kind(value_linear),
        plan=kind(plan),
        potentials=(kind(u), kind(v)),
        status=kind(result.status),
        log={"n_iter": last},
    )


def solve_sample_batch(
    X_a: Array,
    X_b: Array,
    reg: float | None = None,
    a: Array | None = None,
    b: Array | None = None,
    metric: str = "sqeuclidean",
    p: float = 2,
    max_iter: int = 1000,
    tol: float = 1e-5,
    method: str = "auto",
    inner_iter: int = 1,
    inner_reg: float = 1e-3,
    reg_type: str = "entropy",
    grad: str = "envelope",
    *,
    solver: str | None = None,
) -> OTResult:
    """`ot.batch.solve_sample_batch`: `dist_batch` of X_a (B, n, d) and X_b (B, m, d), then
    `solve_batch`.

    >>> X = np.array([[[0.0], [1.0]]])
    >>> solve_sample_batch(X, X, reg=0.5).plan.round(3)
    array([[[0.44, 0.06],
            [0.06, 0.44]]])
    """
    M = dist_batch(X_a, X_b, metric=metric, p=p)
    return solve_batch(
        M, reg, a=a, b=b, max_iter=max_iter, tol=tol, method=method, inner_iter=inner_iter,
        inner_reg=inner_reg, reg_type=reg_type, grad=grad, solver=solver,
    )  # fmt: skip


def dist_batch(
    X1: Array, X2: Array | None = None, metric: str = "sqeuclidean", p: float = 2, nx: None = None
) -> Array:
    """`ot.batch.dist_batch`: (B, n, m) distances between X1 (B, n, d) and X2 (B, m, d; None: X1).

    "sqeuclidean", "euclidean", "minkowski" (of order p), or "kl", which is KL(X2_j | X1_i). Squared
    distances are never negative and distances never NaN, also between equal points (POT's are).

    >>> dist_batch(np.array([[[0.0, 0.0]]]), np.array([[[3.0, 4.0], [0.0, 0.0]]]), "euclidean")
    array([[[5., 0.]]])
    """
    refuse("dist_batch", nx=(nx, None))
    metric = metric.lower()
    check.choice("metric", metric, _METRICS)
    kind, (x, y) = tensors("dist_batch", X1=X1, X2=X1 if X2 is None else X2)
    if metric == "sqeuclidean":
        # Centred: the products of coordinates far from 0 would swallow the differences.
        centre = x.detach().mean(1, keepdim=True) if x.shape[1] else 0
        x, y = x - centre, y - centre
        square = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :]
        return kind((square - 2 * x @ y.transpose(1, 2)).clamp(min=0))
    if metric == "kl":
        small = 1e-10
        entropy = (y * (y + small).log()).sum(2)[:, None, :]
        return kind(entropy - (x + small).log() @ y.transpose(1, 2))
    order = 2.0 if metric == "euclidean" else float(p)
    mode = "donot_use_mm_for_euclid_dist"
    return kind(torch.cdist(x, y, p=order, compute_mode=mode))


def loss_linear_batch(M: Array, T: Array, nx: None = None) -> Array:
    """`ot.batch.loss_linear_batch`: <T_b, M_b> of each problem, (B,).

    >>> loss_linear_batch(np.ones((2, 3, 4)), np.full((2, 3, 4), 0.5))
    array([6., 6.])
    """
    refuse("loss_linear_batch", nx=(nx, None))
    kind, (cost, plan) = tensors("loss_linear_batch", M=M, T=T)
    return kind((cost * plan).sum((1, 2)))


def loss_linear_samples_batch(X: Array, Y: Array, T: Array, metric: str = "sqeuclidean") -> Array:
    """`ot.batch.loss_linear_samples_batch`: `loss_linear_batch` of `dist_batch`.

    >>> loss_linear_samples_batch(np.zeros((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1, 1)))
    array([2.])
    """
    return loss_linear_batch(dist_batch(X, Y, metric=metric), T)


def _pot_solve_batch(why: str) -> Any:
    try:
        from ot.batch import solve_batch as theirs
    except ImportError:
        raise ImportError(
            f"solve_batch: {why} runs in POT, which is not installed: pip install 'pot>=0.9.7'"
        ) from None
    if "method" not in inspect.signature(theirs).parameters:
        raise ImportError(f"solve_batch: {why} needs pot>=0.9.7; the installed POT is older")
    return theirs
