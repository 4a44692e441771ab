"""Interleaved timers and the saved-activation meter.

Timings that are compared are taken in one process and in turns: round after round, each callable
once, beginning with another one each time. A machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = ["SavedActivations", "Timing", "interleave", "saved_activations", "speedup"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call. samples: one per round, in round order."""

    name: str
    samples: tuple[float, ...]

    @property
    def median_us(self) -> float:
        return float(np.percentile(self.samples, 50))

    @property
    def p20_us(self) -> float:
        return float(np.percentile(self.samples, 20))

    @property
    def p80_us(self) -> float:
        return float(np.percentile(self.samples, 80))

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.samples)


def interleave(
    callables: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    min_sample_us: float = 200.0,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times the callables in turns for about `seconds` in all.

    A sample is as many calls in a row as take `min_sample_us`, divided by their number, so that the
    clock costs nothing. Each callable warms up first. `synchronize` (e.g. torch.cuda.synchronize)
    runs before a clock is read. The garbage collector is off while a clock runs.

    >>> timings = interleave({"a": lambda: sum(range(10)), "b": lambda: None}, seconds=0.01)
    >>> timings["a"].median_us > timings["b"].median_us
    True
    """
    if not callables:
        return {}
    names = list(callables)
    wait = synchronize or (lambda: None)
    repeats = {name: _repeats(callables[name], min_sample_us, wait) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        for round_ in range(max_rounds):
            if round_ >= min_rounds and time.perf_counter() > deadline:
                break
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                elapsed = _elapsed_us(callables[name], repeats[name], wait)
                samples[name].append(elapsed / repeats[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(name, tuple(samples[name])) for name in names}


def speedup(timings: Mapping[str, Timing], *, of: str, over: str) -> float:
    """How many times faster `of` is than `over`: the median of the ratios within each round.

    >>> speedup({"a": Timing("a", (1.0, 2.0)), "b": Timing("b", (2.0, 4.0))}, of="a", over="b")
    2.0
    """
    fast, slow = timings[of].samples, timings[over].samples
    return float(np.median(np.asarray(slow) / np.asarray(fast)))


@dataclass(slots=True)
class SavedActivations:
    """What autograd keeps for backward, without the tensors that were excluded.

    tensors: (shape, dtype) of each, in the order of saving; two views of one memory count once if
    they are equal, and each for itself if they differ in size.
    """

    tensors: list[tuple[tuple[int, ...], torch.dtype]] = field(default_factory=list)
    elements: int = 0
    bytes: int = 0


@contextmanager
def saved_activations(exclude: Iterable[Tensor] = ()) -> Iterator[SavedActivations]:
    """Counts what a forward pass saves for backward. `exclude`: parameters, which are kept anyway.

    >>> x, weight = torch.ones(5, 3), torch.ones(2, 3, requires_grad=True)
    >>> with saved_activations(exclude=[weight]) as saved:
    ...     y = x @ weight.T
    >>> saved.elements, saved.bytes
    (15, 60)
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude if tensor.numel()}
    seen: set[tuple[int, int]] = set()
    saved = SavedActivations()

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage().data_ptr()
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and memory not in excluded and key not in seen:
            seen.add(key)
            saved.tensors.append((tuple(tensor.shape), tensor.dtype))
            saved.elements += tensor.numel()
            saved.bytes += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _repeats(call: Callable[[], object], min_sample_us: float, wait: Callable[[], object]) -> int:
    """Calls per sample; finding out is the warm-up: three calls, or one of half a second."""
    if _elapsed_us(call, 1, wait) > 500_000:
        return 1
    call()
    repeats = 1
    while True:
        elapsed = _elapsed_us(call, repeats, wait)
        if elapsed >= min_sample_us or repeats >= 1 << 20:
            return repeats
        # At most ten times more at once: the first calls are the slow ones.
        growth = min(10.0, max(2.0, min_sample_us / max(elapsed, 1e-3)))
        repeats = int(repeats * growth)


def _elapsed_us(call: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter_ns() - start) / 1000.0
