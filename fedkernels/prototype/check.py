"""Argument checks of the family, and the arguments as the primitives take them.

Contents are looked at on the CPU in eager mode only, and where the kernel reports what it saw they
are not looked at here at all: labels out of range come back from the pass over x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkernels._check import FLOATS, INTEGERS, choice, number, readable, same_device, shape, tensor

__all__ = [
    "METRICS",
    "class_weights",
    "labels",
    "logit_options",
    "mask_of",
    "neighbours",
    "points",
    "wide",
]

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
_NUMBERS = {name: i for i, name in enumerate(METRICS)}


def wide(x: Tensor) -> torch.dtype:
    """T, the dtype of everything but x: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def points(x: Tensor, prototypes: Tensor, metric: str) -> tuple[Tensor, Tensor, int]:
    """Checks both; returns x, the prototypes in T, both contiguous, and the metric's number."""
    tensor("x", x)
    tensor("prototypes", prototypes)
    if x.dim() != 2 or prototypes.dim() != 2 or x.shape[1] != prototypes.shape[1]:
        raise ValueError(
            "x and prototypes must be (N, D) and (K, D), "
            f"got x {shape(x)} and prototypes {shape(prototypes)}"
        )
    if prototypes.shape[0] == 0:
        raise ValueError("prototypes must have at least one row")
    _floating("x", x)
    _floating("prototypes", prototypes)
    to = wide(x)
    if prototypes.dtype != to:
        if prototypes.dtype == torch.float64:
            raise TypeError(
                f"prototypes must be float32 or narrower to go with x in {x.dtype}, got float64"
            )
        prototypes = prototypes.to(to)
    if prototypes.device != x.device:
        same_device(x, "x", "prototypes", prototypes)
    found = _NUMBERS.get(metric) if isinstance(metric, str) else None
    if found is None:
        choice("metric", metric, METRICS)
        raise AssertionError(metric)
    mu = prototypes.contiguous()
    # Dynamo refuses the same tensor in two places.
    return x.contiguous(), mu.view_as(mu) if mu is x else mu, found


def mask_of(x: Tensor, mu: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as (1, K) or (N, K)."""
    if mask is None:
        return None
    tensor("mask", mask)
    n, k = x.shape[0], mu.shape[0]
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True: may be used), got {mask.dtype}")
    if mask.shape != (k,) and mask.shape != (n, k):
        raise ValueError(f"mask must be ({k},) or ({n}, {k}), got {shape(mask)}")
    same_device(x, "x", "mask", mask)
    return (mask[None] if mask.dim() == 1 else mask).contiguous()


def neighbours(k: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if not 1 <= k <= 32:
        raise ValueError(f"k must be between 1 and 32, got {k}")
    return k


def logit_options(
    x: Tensor, mu: Tensor, temperature: float, log_prior: Tensor | None
) -> tuple[float, Tensor | None]:
    """The temperature, and the prior in T."""
    number("temperature", temperature)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if log_prior is not None:
        log_prior = _per_class(x, mu, "log_prior", log_prior)
    return float(temperature), log_prior


def class_weights(x: Tensor, mu: Tensor, weight: Tensor | None) -> Tensor | None:
    """The weights in T; they are constants."""
    if weight is None:
        return None
    _constant("class_weight", weight)
    weight = _per_class(x, mu, "class_weight", weight)
    if readable(weight) and not bool(weight.min() >= 0):
        index = int((~(weight >= 0)).int().argmax())
        raise ValueError(
            f"class_weight must not be negative or NaN, got {float(weight[index])} at {index}"
        )
    return weight


def labels(x: Tensor, mu: Tensor, target: Tensor) -> Tensor:
    """The target as int64 (N,) or as soft labels (N, K) in T."""
    _constant("target", target)
    n, k = x.shape[0], mu.shape[0]
    if target.shape == (n,):
        if target.dtype != torch.int64:
            if target.dtype not in INTEGERS:
                raise TypeError(
                    f"target ({n},) must hold integer labels, got {target.dtype}; "
                    f"soft labels are ({n}, {k})"
                )
            target = target.to(torch.int64)
    elif target.shape == (n, k):
        if target.dtype not in FLOATS:
            raise TypeError(
                f"target ({n}, {k}) must hold soft labels of a floating dtype, got {target.dtype}"
            )
        target = target.to(mu.dtype)
    else:
        raise ValueError(
            f"target must be labels ({n},) or soft labels ({n}, {k}), got {shape(target)}"
        )
    if target.device != x.device:
        same_device(x, "x", "target", target)
    return target.contiguous()


def _floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def _per_class(x: Tensor, mu: Tensor, name: str, value: Tensor) -> Tensor:
    tensor(name, value)
    _floating(name, value)
    k = mu.shape[0]
    if value.shape != (k,):
        raise ValueError(f"{name} must be ({k},), got {shape(value)}")
    same_device(x, "x", name, value)
    return value.to(mu.dtype).contiguous()


def _constant(name: str, value: Tensor) -> None:
    tensor(name, value)
    if value.requires_grad:
        raise ValueError(f"{name} is a constant and has no gradient here: pass {name}.detach()")
