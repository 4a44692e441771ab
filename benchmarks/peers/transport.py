"""What the transport functions are compared with: POT, and the formula in PyTorch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..problems import ConditionalProblem, ExactProblem, SinkhornProblem
from .contender import Contender, Peer, PeerMissing

__all__ = ["LITERAL", "POT_EMD", "POT_LINEAR", "POT_LOG"]

# POT stops when the L2 error of the worst problem's rows is below its tolerance, ours when the L1
# error of each is. Over these problems (n = 16) the L1 error is 3.1 times the L2 error in the mean
# and 3.7 times at most.
_L1_OF_L2 = 3.4


def _solve_batch() -> Any:
    try:
        from ot.batch import solve_batch
    except ImportError as error:
        raise PeerMissing(f"pot: {error}") from None
    if "method" not in inspect.signature(solve_batch).parameters:
        raise PeerMissing("pot: 0.9.7 or newer is needed")
    return solve_batch


def _pot_batch(problem: SinkhornProblem, method: str) -> Contender:
    """`ot.batch.solve_batch` without gradients ("envelope" would record every iteration)."""
    solve = _solve_batch()

    def forward() -> tuple[Tensor, Tensor]:
        result = solve(
            problem.cost,
            reg=problem.eps,
            a=problem.a,
            b=problem.b,
            max_iter=problem.iterations,
            tol=problem.tol / _L1_OF_L2,
            method=method,
            grad="detach",
        )
        return result.plan, result.value_linear

    return Contender(forward, outputs=("plan", "linear"))


def pot_log(problem: SinkhornProblem) -> Contender:
    return _pot_batch(problem, "log_sinkhorn")


def pot_linear(problem: SinkhornProblem) -> Contender:
    """POT's fastest method; it underflows at small eps, here it does not."""
    return _pot_batch(problem, "sinkhorn")


def pot_emd(problem: ExactProblem) -> Contender:
    """`ot.emd2` problem by problem on numpy arrays, as its documentation has it."""
    try:
        from ot import emd2
    except ImportError as error:
        raise PeerMissing(f"pot: {error}") from None
    cost = problem.cost.numpy()
    batch, n, _ = cost.shape
    uniform = torch.full((batch, n), 1 / n, dtype=problem.cost.dtype)
    a = (uniform if problem.a is None else problem.a).numpy()
    b = (uniform if problem.b is None else problem.b).numpy()

    def forward() -> Tensor:
        values = [float(emd2(a[k], b[k], cost[k])) for k in range(batch)]
        return torch.tensor(values, dtype=torch.float64)

    return Contender(forward, outputs=("value",))


def literal_conditional(problem: ConditionalProblem) -> Contender:
    """The formula as one writes it, one product for cost and logits, autograd's backward."""
    x, y = problem.x, problem.y

    def forward() -> Tensor:
        dot = x @ y.T
        cost = 1 - dot / (x.norm(dim=1)[:, None] * y.norm(dim=1))
        logits = dot / problem.temperature
        there = (logits.softmax(1) * cost).sum(1).mean()
        back = (logits.softmax(0) * cost).sum(0).mean()
        return 0.5 * (there + back)

    def step() -> tuple[Tensor, ...]:
        value = forward()
        return (value, *torch.autograd.grad(value, (x, y)))

    return Contender(forward, step, outputs=("value",), gradients=("dx", "dy"), parameters=(x, y))


LITERAL = Peer("literal PyTorch", "torch", literal_conditional)
POT_LOG = Peer("POT log", "POT", pot_log, dtypes=("float32",))
POT_LINEAR = Peer("POT linear", "POT", pot_linear, dtypes=("float32",))
POT_EMD = Peer("ot.emd2 loop", "POT", pot_emd, dtypes=("float64",))
