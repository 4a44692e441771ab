"""A peer, and one implementation that is ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

__all__ = ["Contender", "Peer", "PeerMissing", "package_version", "without_recording"]


class PeerMissing(RuntimeError):
    """The peer's package is not installed here: the table says so instead of leaving a gap."""


@dataclass(frozen=True)
class Contender:
    """One implementation, ready to be timed.

    `forward` returns what `outputs` names, `step` that and then what `gradients` names.
    `parameters` are the tensors that do not count as saved activations.
    """

    forward: Callable[[], Any]
    step: Callable[[], tuple[Tensor, ...]] | None = None
    outputs: tuple[str, ...] = ("y",)
    gradients: tuple[str, ...] = ()
    parameters: tuple[Tensor, ...] = ()

    def results(self) -> dict[str, Tensor]:
        """One run, by name: with its gradients if it has a backward."""
        if self.step is not None:
            return dict(zip((*self.outputs, *self.gradients), self.step(), strict=True))
        values = self.forward()
        values = values if isinstance(values, tuple) else (values,)
        return dict(zip(self.outputs, values, strict=True))


@dataclass(frozen=True)
class Peer:
    """Name, version and builder of one peer.

    `same_work=False` marks what is no rival but a bound (the bare frozen linear): it computes
    less, so it is printed as overhead and never counts as the strongest peer. `compiles` marks one
    that compiles for seconds before its first call: the smoke test leaves it out.
    """

    name: str
    package: str
    build: Callable[[Any], Contender]
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    same_work: bool = True
    compiles: bool = False

    @property
    def label(self) -> str:
        """`name (package version)`, the form that stands in rows and tables."""
        return f"{self.name} ({self.package} {package_version(self.package)})"


def without_recording(contender: Contender) -> Contender:
    """The same, its forward pass alone as an evaluation: no gradient will be asked for."""
    recorded = contender.forward

    def forward() -> Any:
        with torch.no_grad():
            return recorded()

    return replace(contender, forward=forward)


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
