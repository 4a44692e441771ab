"""What the regularisation does to a transport plan, and how fast Sinkhorn's iteration gets there.

    python examples/transport_plans.py [--out transport_plans.png] [--points 48] [--iterations 1000]

Three clusters are moved onto a ring. The plans of all eps are one batch: one call of
`fedkernels.sinkhorn` with one cost and a tensor of eps; the exact plan is one call of
`fedkernels.emd`. Below, the L1 error of the row sums after each number of iterations.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from fedkernels import emd, sinkhorn

EPS = (1.0, 0.1, 0.01)
# From pale to dark as the plan gets sharper.
COLOURS = ("#7fb0d8", "#3d7fbd", "#123f73")
SOURCE, TARGET = "#d1602f", "#4a4a4a"


def clouds(points: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, three clusters, and y, a ring: (points, 2) each."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(points) * (2 * math.pi / 3)
    centres = 0.45 * torch.stack([angle.cos(), angle.sin()], 1)
    x = centres + 0.1 * torch.randn(points, 2, generator=generator)
    turn = torch.arange(points) * (2 * math.pi / points)
    return x, torch.stack([turn.cos(), turn.sin()], 1)


def plans(cost: Tensor, eps: Tensor) -> Tensor:
    """One plan for each eps, (B, n, m), in one call."""
    return sinkhorn(cost, eps=eps, tol=1e-6, max_iter=100_000).plan()


def errors(cost: Tensor, eps: Tensor, counts: list[int]) -> Tensor:
    """(len(counts), B): the L1 error of the rows after so many iterations, for each eps."""
    return torch.stack(
        [
            sinkhorn(cost, eps=eps, tol=0, max_iter=count, solver="sinkhorn").marginal_error
            for count in counts
        ]
    )


def draw(
    x: Tensor, y: Tensor, shown: dict[str, Tensor], counts: list[int], error: Tensor, out: Path
):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, len(shown), height_ratios=[1.25, 1])
    for column, (title, plan) in enumerate(shown.items()):
        axes = figure.add_subplot(grid[0, column])
        share = plan * len(x)  # of what one source point sends
        rows, columns = (share > 0.01).nonzero(as_tuple=True)
        sent = share[rows, columns].clamp(max=1)
        lines = torch.stack([x[rows], y[columns]], 1).tolist()
        axes.add_collection(
            LineCollection(
                lines,
                linewidths=(0.5 + 1.5 * sent).tolist(),
                alpha=(0.1 + 0.8 * sent.sqrt()).tolist(),
                colors=COLOURS[-1],
                zorder=1,
            )
        )
        axes.scatter(*x.T.tolist(), s=16, color=SOURCE, zorder=2, label="from")
        axes.scatter(*y.T.tolist(), s=16, color=TARGET, marker="s", zorder=2, label="to")
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
        axes.set_frame_on(False)
        to = (plan > 0.01 / len(x)).sum(1).float().mean().item()
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(f"each point sends to {to:.0f}" + " others" * (to >= 1.5))
        if column == 0:
            axes.legend(loc="upper left", fontsize=8, frameon=False, handletextpad=0.1)
    axes = figure.add_subplot(grid[1, :])
    floor = 2e-7
    axes.axhline(floor, color="#9a9a9a", linewidth=1, linestyle=":")
    axes.annotate("rounding of float32", (1, floor), xytext=(4, 4), textcoords="offset points",
                  color="#6a6a6a", fontsize=9)  # fmt: skip
    for k, eps in enumerate(EPS):
        above = error[:, k] > floor
        end = len(counts) if bool(above.all()) else int(above.int().argmin()) + 1
        axes.plot(counts[:end], error[:end, k].clamp(min=floor), color=COLOURS[k], linewidth=2)
        at = int((error[:end, k].log10() + 2.6).abs().argmin())
        axes.annotate(f"eps = {eps:g}", (counts[at], error[at, k].item()), xytext=(6, 4),
                      textcoords="offset points", color=COLOURS[k])  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="iterations", xlim=(1, counts[-1]))
    axes.set_ylabel("error of the row sums (L1)")
    axes.set_title("A smaller eps gives a sharper plan and takes more iterations", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("transport_plans.png"))
    parser.add_argument("--points", type=int, default=48)
    parser.add_argument("--iterations", type=int, default=1000)
    options = parser.parse_args()
    x, y = clouds(options.points)
    cost = torch.cdist(x, y).square()
    eps = torch.tensor(EPS)
    shown = {f"eps = {value:g}": plan for value, plan in zip(EPS, plans(cost, eps), strict=True)}
    shown["exact (emd)"] = emd(cost).plan
    counts = sorted(
        {round(10 ** (k / 12)) for k in range(100)} & set(range(options.iterations + 1))
    )
    error = errors(cost, eps, counts)
    draw(x, y, shown, counts, error, options.out)
    for k, value in enumerate(EPS):
        print(f"eps {value:g}: error {error[-1, k]:.1e} after {counts[-1]} iterations")
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
