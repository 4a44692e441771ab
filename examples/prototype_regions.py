"""Prototypes and k-means in two dimensions: what belongs to what, and how surely.

    python examples/prototype_regions.py [--out prototype_regions.png] [--points 400] [--grid 300]

Four clusters, two of them of one class. Left and middle: `fedkernels.class_mean` gives each class a
prototype, `fedkernels.prototype_softmax` says for every pixel how sure its class is, at two
temperatures. Right: `fedkernels.kmeans` knows no classes; `fedkernels.prototype_assign` gives every
pixel to its nearest centre, and the lines lead from the first centres, four of the points, to the
last ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fedkernels import class_mean, kmeans, prototype_assign, prototype_softmax

TEMPERATURES = (2.0, 0.2)
CLUSTERS = torch.tensor([[-1.1, -0.7], [1.2, -0.8], [-0.1, 1.1], [-1.5, 0.9]])
CLASS_OF_CLUSTER = torch.tensor([0, 1, 2, 0])
# Blue, orange, green and purple: apart in lightness too.
COLOURS = torch.tensor(
    [[0.16, 0.42, 0.71], [0.87, 0.45, 0.11], [0.25, 0.57, 0.36], [0.50, 0.32, 0.60]]
)
SIDE = 2.6


def clusters(points: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (points, 2) and its class (points,)."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(points) % len(CLUSTERS)
    x = CLUSTERS[which] + 0.38 * torch.randn(points, 2, generator=generator)
    return x, CLASS_OF_CLUSTER[which]


def pixels(grid: int) -> Tensor:
    """The centres of grid x grid pixels, (grid * grid, 2), from the lower left."""
    line = (torch.arange(grid) + 0.5) * (2 * SIDE / grid) - SIDE
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).reshape(-1, 2)


def mixed(prob: Tensor, grid: int) -> Tensor:
    """(grid, grid, 3): each pixel the mixture of its classes' colours, on white where unsure."""
    colour = prob @ COLOURS[: prob.shape[1]]
    sure = (prob.max(1, keepdim=True).values - 1 / prob.shape[1]) / (1 - 1 / prob.shape[1])
    strength = 0.15 + 0.5 * sure.clamp(0, 1)
    return (1 - strength * (1 - colour)).clamp(0, 1).reshape(grid, grid, 3)


def draw(
    x: Tensor, label: Tensor, prototypes: Tensor, soft: list[Tensor], path: list[Tensor],
    index: Tensor, regions: Tensor, grid: int, out: Path,
) -> None:  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, columns = plt.subplots(1, 3, figsize=(12, 4.7), layout="constrained")
    extent = (-SIDE, SIDE, -SIDE, SIDE)
    line = ((torch.arange(grid) + 0.5) * (2 * SIDE / grid) - SIDE).tolist()
    for axes, temperature, prob in zip(columns, TEMPERATURES, soft, strict=False):
        axes.imshow(mixed(prob, grid).numpy(), origin="lower", extent=extent)
        sure = prob.max(1).values.reshape(grid, grid)
        axes.contour(line, line, sure, levels=[0.5, 0.9], colors="#5a5a5a", linewidths=0.7)
        axes.scatter(*x.T.tolist(), s=7, c=COLOURS[label].tolist(), linewidths=0)
        axes.scatter(*prototypes.T.tolist(), s=110, c=COLOURS[: len(prototypes)].tolist(),
                     marker="*", edgecolors="black", linewidths=0.9)  # fmt: skip
        axes.set_title(f"prototype_softmax, temperature {temperature:g}", fontsize=11)
        axes.set_xlabel("lines: half and nine tenths sure", fontsize=9)
    axes = columns[-1]
    hard = torch.nn.functional.one_hot(regions, len(path[0])).float()
    axes.imshow(mixed(hard, grid).numpy(), origin="lower", extent=extent)
    axes.scatter(*x.T.tolist(), s=7, c=COLOURS[index].tolist(), linewidths=0)
    steps = torch.stack(path)
    for k in range(steps.shape[1]):
        axes.plot(*steps[:, k].T.tolist(), color="black", linewidth=1)
    axes.scatter(*steps[0].T.tolist(), s=22, color="white", edgecolors="black", zorder=3)
    axes.scatter(*steps[-1].T.tolist(), s=110, c=COLOURS.tolist(), marker="*",
                 edgecolors="black", linewidths=0.9, zorder=3)  # fmt: skip
    axes.set_title("kmeans and its regions", fontsize=11)
    axes.set_xlabel(f"from the first centres (white) in {len(path) - 1} iterations", fontsize=9)
    for axes in columns:
        axes.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("prototype_regions.png"))
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--grid", type=int, default=300, help="pixels a side")
    options = parser.parse_args()
    x, label = clusters(options.points)
    everywhere = pixels(options.grid)

    prototypes = class_mean(x, label, 3).mean
    soft = [
        prototype_softmax(everywhere, prototypes, temperature=temperature).prob
        for temperature in TEMPERATURES
    ]
    right = float((prototype_assign(x, prototypes).index[:, 0] == label).float().mean())
    print(f"prototypes: {100 * right:.0f} % of the points are nearest to that of their class")

    generator = torch.Generator().manual_seed(4)
    path = [x[torch.randint(len(x), (4,), generator=generator)]]
    while True:  # one iteration a call, to see the way; one call would do
        found = kmeans(x, 4, init=path[-1], max_iter=1, tol=0.0)
        path.append(found.centers)
        if torch.equal(path[-1], path[-2]):
            path.pop()
            break
    regions = prototype_assign(everywhere, path[-1]).index[:, 0]
    print(f"k-means: inertia {found.inertia:.2f} after {len(path) - 1} iterations")

    draw(x, label, prototypes, soft, path, found.index, regions, options.grid, options.out)
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
