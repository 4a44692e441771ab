"""The entries of `transport`."""

from __future__ import annotations

from typing import Any

import torch

from fedkernels import conditional_transport, emd, sinkhorn
from fedkernels.testing.check import (
    Verdict,
    conditional_within_budget,
    emd_is_optimal,
    iterates_within_budget,
    plan_is_optimal,
)

from ..peers import Contender
from ..peers import transport as p
from ..problems import (
    ConditionalProblem,
    ExactProblem,
    SinkhornProblem,
    conditional_problem,
    exact_problem,
    sinkhorn_problem,
)
from .entry import FORWARD, FORWARD_BACKWARD, GATE_TEST, Case, Entry, Goal, Results, Sizes

__all__ = ["ENTRIES"]

_CHECKED_CELLS = 1 << 18  # the reference in double takes seconds for more


def _cases(iterations: int, *shapes: tuple[int, int]) -> tuple[Case, ...]:
    return tuple(
        Case(f"B{batch} n{n} m{n}", {"B": batch, "n": n, "m": n, "iterations": iterations})
        for batch, n in shapes
    )


def _ours(problem: SinkhornProblem, backend: str) -> Contender:
    """The plan and <P, C>, as POT's call returns them."""
    solver = "sinkhorn" if problem.tol == 0 else "auto"
    start = -problem.eps * problem.b.log()  # POT's, so that the iterates are the same

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        result = sinkhorn(
            problem.cost,
            problem.a,
            problem.b,
            eps=problem.eps,
            max_iter=problem.iterations,
            tol=problem.tol,
            solver=solver,
            init=(start, start),
            backend=backend,
        )
        return result.plan(), result.linear_cost

    return Contender(forward, outputs=("plan", "linear"))


def _gate(problem: SinkhornProblem, backend: str) -> Verdict:
    """The call as it is timed, on all problems; as many as the reference can do are compared."""
    batch, n, m = problem.cost.shape
    count = min(batch, max(1, _CHECKED_CELLS // max(n * m, 1)))
    compare = iterates_within_budget if problem.tol == 0 else plan_is_optimal
    return compare(
        problem.cost,
        problem.a,
        problem.b,
        eps=problem.eps,
        max_iter=problem.iterations,
        tol=problem.tol,
        first=count,
        backend=backend,
    )


def _same(problem: SinkhornProblem, mine: Results, theirs: Results) -> str | None:
    # At equal iterations rounding remains, which grows with max(C) / eps. To a tolerance, two plans
    # that are both within it differ by what the conditioning of the problem makes of it.
    limit = 1e-3 if problem.tol == 0 else 1e-2
    for name in ("plan", "linear"):
        a, b = mine[name].double(), theirs[name].double()
        error = float((a - b).norm() / b.norm())
        if not error <= limit:  # a NaN differs
            return f"{name} differs by {error:.1e} (limit {limit:.0e})"
    return None


def _cells(sizes: Sizes) -> int:
    return sizes["B"] * sizes["n"] * sizes["m"]


def _bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    # read the cost and the masses; write the plan
    return itemsize * (2 * _cells(sizes) + sizes["B"] * (sizes["n"] + sizes["m"]))


def _flops(sizes: Sizes, direction: str) -> float:
    """One multiply-add a cell for the rows and one for the columns: the linear domain's least."""
    return 4.0 * _cells(sizes) * sizes["iterations"]


def _exps(sizes: Sizes, direction: str) -> float:
    """The kernel matrix once, and the plan."""
    return 2.0 * _cells(sizes)


def _problem_iterations(sizes: Sizes) -> int:
    return sizes["B"] * sizes["iterations"]


_SINKHORN: dict[str, Any] = {
    "family": "transport",
    "op": "sinkhorn",
    "directions": (FORWARD,),
    "dtypes": ("float32",),
    "peers": (p.POT_LOG, p.POT_LINEAR),
    "ours": _ours,
    "gate": _gate,
    "gate_test": GATE_TEST,
    "bytes_moved": _bytes,
    "same": _same,
}


def _goals(**ratios: tuple[float, float]) -> tuple[Goal, ...]:
    """name of a case: (against POT's log solver, against its fastest)."""
    return tuple(
        Goal(peer, ratio, direction=FORWARD, cases=(case.replace("_", " "),))
        for case, both in ratios.items()
        for peer, ratio in zip((p.POT_LOG, p.POT_LINEAR), both, strict=True)
    )


def _plain(sizes: Sizes, dtype: torch.dtype, device: str) -> SinkhornProblem:
    return sinkhorn_problem(sizes, dtype, device=device)


def _to_tolerance(sizes: Sizes, dtype: torch.dtype, device: str) -> SinkhornProblem:
    return sinkhorn_problem(sizes, dtype, device=device, eps=0.05, tol=1e-5)


# --- exact transport ---------------------------------------------------------------------------


def _ours_exact(problem: ExactProblem, backend: str) -> Contender:
    def forward() -> torch.Tensor:
        return emd(problem.cost, problem.a, problem.b).value

    return Contender(forward, outputs=("value",))


def _gate_exact(problem: ExactProblem, backend: str) -> Verdict:
    return emd_is_optimal(problem.cost, problem.a, problem.b)


def _same_exact(problem: ExactProblem, mine: Results, theirs: Results) -> str | None:
    a, b = mine["value"].double(), theirs["value"].double()
    error = float(((a - b).abs() / b.abs()).max())
    return None if error <= 1e-12 else f"a value differs by {error:.1e} (limit 1e-12)"


def _exact(name: str, uniform: bool, goal: float) -> Entry:
    return Entry(
        name=f"emd, {name} masses",
        family="transport",
        op="emd",
        cases=tuple(Case(f"B4096 n{n}", {"B": 4096, "n": n}) for n in (4, 8, 16)),
        quick=(Case("B512 n16", {"B": 512, "n": 16}),),
        directions=(FORWARD,),
        dtypes=("float64",),
        peers=(p.POT_EMD,),
        goals=(Goal(p.POT_EMD, goal, direction=FORWARD),),
        problem=lambda sizes, dtype, device: exact_problem(
            sizes, dtype, device=device, uniform=uniform
        ),
        ours=_ours_exact,
        gate=_gate_exact,
        gate_test=GATE_TEST,
        # read the cost, write the plan: how many pivots a problem takes is known when it is solved
        bytes_moved=lambda sizes, direction, itemsize: 2 * sizes["B"] * sizes["n"] ** 2 * itemsize,
        flops=lambda sizes, direction: 0.0,
        same=_same_exact,
        unit=("problem", lambda sizes: sizes["B"]),
    )


# --- conditional transport ---------------------------------------------------------------------


def _ours_conditional(problem: ConditionalProblem, backend: str) -> Contender:
    x, y = problem.x, problem.y

    def forward() -> torch.Tensor:
        return conditional_transport(x, y, temperature=problem.temperature, backend=backend).value

    def step() -> tuple[torch.Tensor, ...]:
        value = forward()
        return (value, *torch.autograd.grad(value, (x, y)))

    return Contender(forward, step, outputs=("value",), gradients=("dx", "dy"), parameters=(x, y))


def _gate_conditional(problem: ConditionalProblem, backend: str) -> Verdict:
    return conditional_within_budget(
        problem.x, problem.y, temperature=problem.temperature, backend=backend
    )


def _same_conditional(problem: ConditionalProblem, mine: Results, theirs: Results) -> str | None:
    for name in mine:
        a, b = mine[name].double(), theirs[name].double()
        error = float(((a - b).norm() / b.norm()).detach())
        if not error <= 1e-4:
            return f"{name} differs by {error:.1e} (limit 1e-04)"
    return None


def _conditional_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    points = (sizes["N"] + sizes["K"]) * sizes["D"]
    return points * itemsize * (1 if direction == FORWARD else 3)  # read twice, write gradients


def _conditional_flops(sizes: Sizes, direction: str) -> float:
    product = 2.0 * sizes["N"] * sizes["K"] * sizes["D"]
    return product if direction == FORWARD else 4 * product  # dots twice, dx, dy


def _conditional_exps(sizes: Sizes, direction: str) -> float:
    """One for each direction of the plan, again in the backward."""
    return (2.0 if direction == FORWARD else 4.0) * sizes["N"] * sizes["K"]


def _conditional_cases(*shapes: tuple[int, int, int]) -> tuple[Case, ...]:
    return tuple(Case(f"N{n} K{k} D{d}", {"N": n, "K": k, "D": d}) for n, k, d in shapes)


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="sinkhorn, 100 iterations",
        cases=_cases(100, (65536, 4), (8192, 16), (512, 64), (32, 256), (2, 1024)),
        quick=_cases(100, (1024, 16), (64, 64)),
        goals=_goals(B8192_n16_m16=(100, 12), B512_n64_m64=(70, 12), B32_n256_m256=(100, 15)),
        problem=_plain,
        flops=_flops,
        exps=_exps,
        unit=("problem-iteration", _problem_iterations),
        **_SINKHORN,
    ),
    Entry(
        name="sinkhorn, one problem, 100 iterations",
        cases=_cases(100, *((1, n) for n in (4, 16, 64, 256, 1024, 2048))),
        quick=_cases(100, (1, 16)),
        goals=(Goal(p.POT_LOG, 1.0, direction=FORWARD), Goal(p.POT_LINEAR, 1.0, direction=FORWARD)),
        problem=_plain,
        flops=_flops,
        exps=_exps,
        unit=("problem-iteration", _problem_iterations),
        **_SINKHORN,
    ),
    Entry(
        # Ours to 1e-5 in L1, each problem by itself; POT to 1e-5 / 3.4 in L2, all until the worst.
        name="sinkhorn, to tolerance",
        cases=_cases(10_000, (8192, 16)),
        quick=_cases(10_000, (256, 16)),
        goals=(Goal(p.POT_LOG, 100.0, direction=FORWARD),),
        problem=_to_tolerance,
        # How many iterations a problem takes is known when it is solved: one is counted.
        flops=lambda sizes, direction: 4.0 * _cells(sizes),
        exps=_exps,
        unit=("problem", lambda sizes: sizes["B"]),
        **_SINKHORN,
    ),
    _exact("uniform", True, 15.0),
    _exact("random", False, 10.0),
    Entry(
        name="conditional_transport",
        family="transport",
        op="conditional_transport",
        cases=_conditional_cases((16384, 100, 128)),
        quick=_conditional_cases((4096, 100, 128)),
        directions=(FORWARD, FORWARD_BACKWARD),
        dtypes=("float32",),
        peers=(p.LITERAL,),
        goals=(Goal(p.LITERAL, 4.0),),
        problem=lambda sizes, dtype, device: conditional_problem(sizes, dtype, device=device),
        ours=_ours_conditional,
        gate=_gate_conditional,
        gate_test=GATE_TEST,
        bytes_moved=_conditional_bytes,
        flops=_conditional_flops,
        exps=_conditional_exps,
        same=_same_conditional,
    ),
)
