"""From the gradient of a distance to the weight of a pair.

Every metric's gradients are sums over pairs with one weight w_ij:

    (squared) Euclidean  dx_i = sum_j w_ij (x_i - mu_j)                   w = 2 g, or g / distance
    cosine               dx_i = sum_j w_ij (mu_j/|mu_j| - cos_ij x_i/|x_i|) / |x_i|       w = -g
    dot                  dx_i = sum_j w_ij mu_j                                           w = -g

A pair without gradient weighs 0 whatever its values are. A pair that is not finite and has one
weighs NaN, so that the products may leave out points that are not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fedkernels._triton import is_finite
from fedkernels.prototype.triton.tiles import COSINE, DOT, EUCLIDEAN, SQEUCLIDEAN


def factor_of(metric: int) -> float:
    """w_ij / g_ij, for the Euclidean distance before its division."""
    return {SQEUCLIDEAN.value: 2.0, EUCLIDEAN.value: 1.0}.get(metric, -1.0)


@triton.jit
def store_weights(WEIGHT, at, inside, grad, distance, factor, METRIC: tl.constexpr):
    """Stores the weights of a tile; returns their sums over the row, weighted by the cosine there.

    factor times grad is the weight, before the division of the Euclidean distance."""
    nothing = grad == 0.0
    weight = grad * factor
    if METRIC == EUCLIDEAN:
        zero = distance == 0.0
        weight = tl.where(zero, 0.0, tl.div_rn(weight, tl.where(zero, 1.0, distance)))
    weight = tl.where(nothing, 0.0, tl.where(is_finite(distance), weight, float("nan")))
    tl.store(WEIGHT + at, weight, mask=inside)
    if METRIC == COSINE:
        return tl.sum(tl.where(nothing, 0.0, weight * (1.0 - distance)), 1)
    elif METRIC == DOT:
        return tl.sum(tl.zeros_like(weight), 1)
    else:
        return tl.sum(weight, 1)
