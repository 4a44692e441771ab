"""What the Sinkhorn functions return."""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fedkernels.transport import autograd
from fedkernels.transport.problem import Problem, Settings, State

__all__ = ["Divergence", "SinkhornResult", "TransportStatus", "report"]


class TransportStatus(IntEnum):
    """How a problem ended; `status` tensors hold these as uint8.

    NON_FINITE: NaN or inf in the cost, the points, the masses, eps or the start; INFEASIBLE: a
    negative mass, or balanced totals that differ. Such a problem has the value NaN and the gradient
    0, and changes no other. EMPTY: n = 0 or m = 0 and nothing to transport, value 0.
    """

    CONVERGED = 0
    MAX_ITER = 1
    NON_FINITE = 2
    INFEASIBLE = 3
    EMPTY = 4


class Divergence(NamedTuple):
    """value (B,), differentiable, and status (B,) uint8, the worst of the three problems."""

    value: Tensor
    status: Tensor


class SinkhornResult:
    """The outcome of `sinkhorn` or `sinkhorn_points` (without the leading B for a single problem).

    value (B,): the regularised optimum; differentiable. linear_cost (B,): <P, C>; differentiable
    under grad="implicit". f (B, n), g (B, m): the potentials, for reading and for `init`; no
    gradient. n_iter (B,) int32. marginal_error (B,): L1 error of the rows of the returned plan.
    status (B,) uint8, see `TransportStatus`. Padding holds 0 in f, g and in the plan.
    """

    __slots__ = (
        "_problem",
        "_settings",
        "_state",
        "_versions",
        "f",
        "g",
        "linear_cost",
        "marginal_error",
        "n_iter",
        "status",
        "value",
    )

    def __init__(self, problem: Problem, state: State, settings: Settings) -> None:
        self._problem, self._state, self._settings = problem, state, settings
        self._versions = _versions(problem)
        value, linear = autograd.costs(problem, state, settings)
        self.value = self._lead(value)
        self.linear_cost = self._lead(linear)
        self.f = self._lead(state.f)
        self.g = self._lead(state.g)
        self.n_iter = self._lead(state.n_iter)
        self.marginal_error = self._lead(state.error)
        self.status = self._lead(state.status)

    def plan(self) -> Tensor:
        """P (B, n, m) from the potentials as the kernel ended and from the cost, read again.

        Differentiable under grad="implicit"; under "envelope" its backward raises RuntimeError.
        """
        self._unchanged("plan")
        return self._lead(autograd.plan(self._problem, self._state, self._settings))

    def apply(self, V: Tensor) -> Tensor:
        """P V (B, n, d) for V (B, m, d), or one V (m, d) for all; no (n, m) matrix is held.

        Differentiable to V always, to everything else as `plan`. Raises ValueError, TypeError.
        """
        self._unchanged("apply")
        left, m = self._problem.left, self._state.g.shape[1]
        if not isinstance(V, Tensor) or not V.is_floating_point():
            raise TypeError(
                f"V must be a floating tensor, got {getattr(V, 'dtype', type(V).__name__)}"
            )
        batch = self._problem.batch
        if V.dim() not in (2, 3) or V.shape[-2] != m or (V.dim() == 3 and V.shape[0] != batch):
            raise ValueError(f"V must be ({batch}, {m}, d) or ({m}, d), got {tuple(V.shape)}")
        if V.device != left.device:
            raise ValueError(f"V must be on the problem's device {left.device}, got {V.device}")
        rows = V.to(left.dtype).expand(batch, m, V.shape[-1]).contiguous()
        return self._lead(autograd.apply_plan(rows, self._problem, self._state, self._settings))

    def _unchanged(self, method: str) -> None:
        then, now = self._versions, _versions(self._problem)
        if then is not None and now is not None and then != now:
            raise RuntimeError(
                f"{method}() reads the cost (or the points) that was solved, which was changed in "
                "place since; solve a clone of it"
            )

    def _lead(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(0) if self._problem.single else tensor

    def __repr__(self) -> str:
        batch, n, m = self._problem.batch, self._state.f.shape[1], self._state.g.shape[1]
        return f"SinkhornResult({batch} problems of ({n}, {m}), {self.value.dtype})"


def _versions(problem: Problem) -> tuple[int, ...] | None:
    """What tells a tensor that was written to since; None where torch does not count."""
    held = [t for t in (problem.left, problem.right) if t is not None]
    if torch.compiler.is_compiling() or any(t.is_inference() for t in held):
        return None
    return tuple(t._version for t in held)


def report(op: str, status: Tensor, tol: float) -> None:
    """What strict=True does: the only look at a result, and so the only sync."""
    codes = status.reshape(-1).cpu()
    bad = ((codes == TransportStatus.NON_FINITE) | (codes == TransportStatus.INFEASIBLE)).nonzero()
    if bad.numel():
        first = int(bad[0])
        name = TransportStatus(int(codes[first])).name
        raise ValueError(
            f"{op}: {bad.numel()} of {codes.numel()} problems cannot be solved; problem {first} is "
            f"{name} (see fedkernels.transport.TransportStatus)"
        )
    stopped = int((codes == TransportStatus.MAX_ITER).sum())
    if stopped and tol > 0:
        warnings.warn(
            f"{op}: {stopped} of {codes.numel()} problems reached max_iter above tol",
            RuntimeWarning,
            stacklevel=3,
        )
