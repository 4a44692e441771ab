"""Optimal transport between small or large discrete measures, batched and differentiable."""

from __future__ import annotations
