"""Schemas and fake implementations of the family's compiled and Triton ops.

Private: they run below autograd and check nothing. Every function exists twice with one schema,
``fedkernels::<name>`` (csrc/prototype registers CPU and CUDA) and ``fedkernels::<name>_triton``.
"""

from __future__ import annotations

from types import SimpleNamespace

from fedkernels.prototype.ops import class_sum, distance, softmax

__all__ = ["primitives"]

# Bound once: the chain torch.ops.a.b costs 0.3 us a call. One module of this folder a line.
_COMPILED, _TRITON = (
    SimpleNamespace(
        **class_sum.bound(suffix),
        **distance.bound(suffix),
        **softmax.bound(suffix),
    )
    for suffix in ("", "_triton")
)


def primitives(backend: str) -> SimpleNamespace:
    """The ops of a backend ("cpu", "cuda" or "triton"), by the names that `reference` has too."""
    return _TRITON if backend == "triton" else _COMPILED
