"""How sure a mean of paired differences is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["interval"]

# Draws whose indices are held in memory at a time.
BLOCK = 1 << 22


def interval(
    differences: Sequence[float], draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean: the bounds between which 95 % of `draws` means lie.

    differences: one per pair, such as a seed and a party. Each draw takes as many of them, with
        replacement. One difference gives an interval of no width, which says nothing.

    Errors: `ValueError` without a difference or without a draw.

    >>> low, high = interval([0.1, 0.2, 0.3, 0.2])
    >>> 0.1 <= low <= 0.2 <= high <= 0.3
    True
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"differences: expected one or more numbers, got {differences!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(values))
    means = np.concatenate(
        [
            values[random.integers(0, len(values), (min(rows, draws - at), len(values)))].mean(1)
            for at in range(0, draws, rows)
        ]
    )
    means.sort()
    return float(means[int(0.025 * draws)]), float(means[max(int(0.975 * draws) - 1, 0)])
