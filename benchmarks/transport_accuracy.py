"""How exact the float32 plans are: many random problems, each against its own float64 trajectory.

    python -m benchmarks.transport_accuracy --sizes 16 64 256 --problems 8192

For every size and eps: the L1 distance of a float32 plan after a fixed number of iterations from
the plan that the same iterations give in float64, for our kernel and for POT's log solver (which
starts elsewhere and so has a trajectory of its own). The promise is per problem: at most twice
POT's error plus 1e-6. Printed: median and worst of both, the worst problem, and how many problems
break it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fedkernels import sinkhorn

__all__ = ["Accuracy", "measure"]


@dataclass(frozen=True)
class Accuracy:
    """Plan errors in L1 over `problems` problems; `broken`: above twice POT's error plus 1e-6."""

    n: int
    eps: float
    problems: int
    iterations: int
    ours_median: float
    ours_worst: float
    worst_problem: int
    pot_median: float
    pot_worst: float
    broken: int


def measure(n: int, eps: float, problems: int, iterations: int, chunk: int = 256) -> Accuracy:
    """Costs: squared distances in the unit square, in [0, 2]; masses: softmax of normals."""
    ours, theirs = [], []
    generator = torch.Generator().manual_seed(n)
    for first in range(0, problems, chunk):
        count = min(chunk, problems - first)
        x, y = torch.rand(2, count, n, 2, generator=generator)
        cost = torch.cdist(x, y).square()
        a, b = torch.softmax(torch.randn(2, count, n, generator=generator), -1)
        b = b * (a.double().sum(-1) / b.double().sum(-1)).float()[:, None]
        for found, plan, reg_type in (
            (ours, _ours(cost, a, b, eps, iterations, "kl"), "kl"),
            (theirs, _pot(cost, a, b, eps, iterations), "entropy"),
        ):
            exact = _ours(cost.double(), a.double(), b.double(), eps, iterations, reg_type)
            found.append((plan.double() - exact).abs().sum((1, 2)))
    mine, pot = torch.cat(ours), torch.cat(theirs)
    return Accuracy(
        n, eps, problems, iterations, float(mine.median()), float(mine.max()), int(mine.argmax()),
        float(pot.median()), float(pot.max()), int((mine > 2 * pot + 1e-6).sum()),
    )  # fmt: skip


def _ours(cost: Tensor, a: Tensor, b: Tensor, eps: float, iterations: int, reg_type: str) -> Tensor:
    return sinkhorn(
        cost, a, b, eps=eps, max_iter=iterations, tol=0.0, solver="sinkhorn", reg_type=reg_type,
        # The float64 trajectory is computed in the log domain: nothing to absorb, nothing to redo.
        mode="log" if cost.dtype == torch.float64 else "absorb",
    ).plan()  # fmt: skip


def _pot(cost: Tensor, a: Tensor, b: Tensor, eps: float, iterations: int) -> Tensor:
    from ot.batch import solve_batch

    return solve_batch(
        cost, reg=eps, a=a, b=b, max_iter=iterations, tol=0.0, method="log_sinkhorn", grad="detach"
    ).plan


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of float32 plans against POT's.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0, 0.05, 0.01, 0.002])
    parser.add_argument("--problems", type=int, default=8192)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--out", help="append rows of JSON to this file")
    args = parser.parse_args()
    for n in args.sizes:
        for eps in args.eps:
            row = measure(n, eps, args.problems, args.iterations)
            print(
                f"n {n:4d} eps {eps:<6g} ours {row.ours_median:.1e} / {row.ours_worst:.1e} "
                f"(problem {row.worst_problem})  POT log {row.pot_median:.1e} / "
                f"{row.pot_worst:.1e}  above 2 x POT + 1e-6: {row.broken} of {row.problems}",
                flush=True,
            )
            if args.out:
                with open(args.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
