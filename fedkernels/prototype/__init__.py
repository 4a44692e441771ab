"""Points and prototypes: distances, nearest prototypes, softmax, cross-entropy, differentiable."""

from __future__ import annotations

__all__: list[str] = []
