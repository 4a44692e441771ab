"""The functions of `ot` for one problem, or for one cost and several histograms."""

from __future__ import annotations

import warnings
from typing import Any

from fedkernels.transport import check
from fedkernels.transport.emd import solve
from fedkernels.transport.pot_compat.common import Array, iterate, logarithms, refuse, tensors
from fedkernels.transport.result import TransportStatus

__all__ = ["emd2", "sinkhorn"]


def sinkhorn(
    a: Array,
    b: Array,
    M: Array,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: tuple[Array, Array] | None = None,
    **kwargs: Any,
) -> Any:
    """`ot.sinkhorn`: the plan (n, m) of one problem; with b (m, k), the k costs <P, M>.

    a, b: an empty list is uniform. method: "sinkhorn" or "sinkhorn_log", which are one kernel here
    (the others of POT raise). The iteration is POT's, columns first, and warmstart = (log u, log v)
    starts it. The plan's gradient is that of its limit (`grad="implicit"`), not of the iterations.
    With log=True also {"err": [L1 error], "niter", "log_u", "log_v", "u", "v", "status"}.

    >>> sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1).round(4)
    array([[0.3655, 0.1345],
           [0.1345, 0.3655]])
    """
    check.choice("method", method, ("sinkhorn", "sinkhorn_log"))
    refuse("sinkhorn", verbose=(verbose, False), **{name: (v, None) for name, v in kwargs.items()})
    kind, (cost, mass_a, mass_b) = tensors("sinkhorn", M=M, a=a, b=b)
    several = mass_b is not None and mass_b.dim() == 2
    rows = mass_b.t() if several and mass_b is not None else mass_b
    start = None
    if warmstart is not None:
        first = tensors("sinkhorn", M=M, warmstart=warmstart[0])[1][1]
        assert first is not None
        start = first.t() if several else first
        start = reg * (start if mass_a is None else start - mass_a.log())
    # Columns first: the transposed problem, rows first.
    result = iterate(cost.t(), rows, mass_a, reg, numItermax, stopThr, start, grad="implicit")
    plan = result.plan().transpose(-1, -2)
    answer = (plan * cost).sum((1, 2)) if several else plan
    if warn and bool((result.status == TransportStatus.MAX_ITER).any()):
        warnings.warn(
            "sinkhorn: numItermax was reached above stopThr; increase numItermax or reg",
            stacklevel=2,
        )
    if not log:
        return kind(answer)
    v, u = logarithms(result, rows, mass_a, reg)
    u, v = (u.t(), v.t()) if several else (u, v)
    return kind(answer), {
        "err": [kind(result.marginal_error)],
        "niter": int(result.n_iter.max()) - 1,
        "log_u": kind(u),
        "log_v": kind(v),
        "u": kind(u.exp()),
        "v": kind(v.exp()),
        "status": kind(result.status),
    }


def emd2(
    a: Array,
    b: Array,
    M: Array,
    processes: int = 1,
    numItermax: int = 100000,
    log: bool = False,
    return_matrix: bool = False,
    center_dual: bool = True,
    numThreads: int = 1,
    check_marginals: bool = True,
    potentials_init: None = None,
) -> Any:
    """`ot.emd2`: the exact transport cost of one problem; with b (m, k), a list of k.

    a, b: an empty list is uniform. Differentiable to a, b and M. numItermax counts pivots; where it
    is reached a warning says so, as in POT. With log=True also {"cost", "u", "v", "warning",
    "result_code", and "G" with return_matrix=True}. For many problems `fedkernels.emd` is one call.

    >>> float(emd2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]]))
    0.0
    """
    refuse(
        "emd2",
        processes=(processes, 1),
        center_dual=(center_dual, True),
        numThreads=(numThreads, 1),
        potentials_init=(potentials_init, None),
    )
    kind, (cost, mass_a, mass_b) = tensors("emd2", M=M, a=a, b=b)
    several = mass_b is not None and mass_b.dim() == 2
    rows = mass_b.t() if several and mass_b is not None else mass_b
    if mass_a is not None and rows is not None:
        total, other = mass_a.detach().sum(), rows.detach().sum(-1, keepdim=True)
        if check_marginals and bool(((total - other).abs() > 1.5e-6).any()):
            raise ValueError("emd2: a and b must have the same sum (check_marginals=True)")
        rows = rows * (total / other)
    result = solve(cost, mass_a, rows, None, max_pivot=numItermax)
    if bool((result.status == TransportStatus.INFEASIBLE).any()):
        raise ValueError("emd2: a and b must be non-negative")
    stopped = result.status == TransportStatus.MAX_ITER
    if bool(stopped.any()):
        warnings.warn("emd2: numItermax was reached before the optimum", stacklevel=2)
    answers = []
    fields = (result.value, result.f, result.g, result.plan, stopped)
    for value, f, g, plan, late in zip(*((t if several else t[None]) for t in fields), strict=True):
        told = "numItermax reached before optimality" if bool(late) else None
        found = {"cost": kind(value), "u": kind(f), "v": kind(g), "warning": told}
        found["result_code"] = 3 if told else 1  # POT's MAX_ITER_REACHED and OPTIMAL
        if return_matrix:
            found["G"] = kind(plan)
        answers.append((kind(value), found) if log else kind(value))
    return answers if several else answers[0]
