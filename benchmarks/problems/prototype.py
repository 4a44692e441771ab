"""Prototype problems: clusters around the prototypes, their labels, class means, k-means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .seed import SEED

__all__ = [
    "LABELS",
    "ClusterProblem",
    "MeanProblem",
    "PrototypeProblem",
    "cluster_problem",
    "mean_problem",
    "prototype_problem",
]

LABELS = ("random", "sorted", "skewed")


@dataclass(frozen=True)
class PrototypeProblem:
    """x (N, D) around mu (K, D), both with gradients; label (N,); ``nearest`` prototypes wanted.

    ``upstream`` (N, K) and ``upstream_mass`` (K,): what a loss behind the results sends back.
    """

    x: Tensor
    mu: Tensor
    label: Tensor
    temperature: float
    nearest: int
    upstream: Tensor | None
    upstream_mass: Tensor | None


@dataclass(frozen=True)
class MeanProblem:
    """x (N, D), label (N,) in 0 .. classes - 1."""

    x: Tensor
    label: Tensor
    classes: int


@dataclass(frozen=True)
class ClusterProblem:
    """x (N, D) and the centres (K, D) that every contender starts from; exactly ``iterations``."""

    x: Tensor
    start: Tensor
    iterations: int


def _clusters(sizes: Mapping[str, int], spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points, centres and which centre each point was drawn around."""
    generator = torch.Generator().manual_seed(SEED)
    mu = torch.randn(sizes["K"], sizes["D"], generator=generator)
    label = torch.randint(sizes["K"], (sizes["N"],), generator=generator)
    x = mu[label] + spread * torch.randn(sizes["N"], sizes["D"], generator=generator)
    return x, mu, label


def prototype_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu", upstream: bool = False
) -> PrototypeProblem:
    """Logits differ by about 2 between a row's own prototype and the others: a soft assignment."""
    x, mu, label = _clusters(sizes, spread=1.0)
    generator = torch.Generator().manual_seed(SEED + 1)

    def drawn(*shape: int) -> Tensor | None:
        return torch.randn(shape, generator=generator).to(device) if upstream else None

    return PrototypeProblem(
        x.to(device, dtype).requires_grad_(),
        mu.to(device, dtype).requires_grad_(),
        label.to(device),
        temperature=float(max(sizes["D"], 1)),
        nearest=sizes.get("k", 1),
        upstream=drawn(sizes["N"], sizes["K"]),
        upstream_mass=drawn(sizes["K"]),
    )


def mean_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu", labels: str
) -> MeanProblem:
    """labels: "random", "sorted" (the same, in order), "skewed" (90 % of the rows in class 0)."""
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}; got {labels!r}")
    x, _, label = _clusters(sizes, spread=1.0)
    if labels == "sorted":
        label = label.sort().values
    if labels == "skewed":
        generator = torch.Generator().manual_seed(SEED + 2)
        label[torch.rand(sizes["N"], generator=generator) < 0.9] = 0
    return MeanProblem(x.to(device, dtype), label.to(device), sizes["K"])


def cluster_problem(
    sizes: Mapping[str, int], dtype: torch.dtype, *, device: str = "cpu"
) -> ClusterProblem:
    """Clusters that overlap, and points of the data as first centres: it does not converge soon."""
    x, _, _ = _clusters(sizes, spread=2.0)
    x = x.to(device, dtype)
    return ClusterProblem(x, x[: sizes["K"]].clone(), sizes["iterations"])
