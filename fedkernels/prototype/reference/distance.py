"""Distances of points to prototypes in plain PyTorch: the specification of every kernel.

For x (N, D) and prototypes mu (K, D):

    sqeuclidean   |x_i - mu_j|^2 = |x'|^2 + |mu'|^2 - 2 x'.mu',   x' = x - c, mu' = mu - c
    euclidean     its root, with gradient 0 at 0
    cosine        1 - xh.mh, xh = x / |x|; a vector whose squared norm is below the smallest normal
                  number counts as zero: its cosine is 0 (distance 1) and so is its gradient
    dot           -x.mu

c is the mean in double of the prototypes that are finite, rounded to x's storage dtype. Of the
prototypes alone: a centre that x enters would let one NaN row of x make every row NaN.

Close pairs are repaired. An expansion that cancels says nothing about two points that are close to
one another and far from c, so where the square is below a share of |x'|^2 + |mu'|^2 it is the sum
of (x - mu)^2 instead, of the values as they are given: the rounding of x' and mu' is what loses
two clusters at +-1e4. The share is 64 eps for squares; for roots, whose error is that of the square
divided by the root, 2^-8. Cosine distances below 64 eps are half of |xh - mh|^2. So equal points
have exactly 0.

x keeps its storage dtype; everything else, the results too, has the dtype of mu. Functions of this
folder are ordinary differentiable PyTorch, so higher derivatives exist here and only here; the
backward is the same gradient written out, the form that the kernels implement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "COSINE",
    "DOT",
    "EUCLIDEAN",
    "SQEUCLIDEAN",
    "centre",
    "prototype_distance",
    "prototype_distance_backward",
    "traced",
    "unit",
]

SQEUCLIDEAN, EUCLIDEAN, COSINE, DOT = range(4)
# Below so many numbers all differences are formed; above, only those of pairs that are close.
_DENSE = 1 << 18


def prototype_distance(x: Tensor, mu: Tensor, metric: int) -> Tensor:
    """(N, K), in mu's dtype."""
    left = x.to(mu.dtype)
    if metric == DOT:
        return -(left @ mu.mT)
    if metric == COSINE:
        left, right = unit(left)[0], unit(mu)[0]
        distance = 1 - left @ right.mT
        return _repaired(distance, distance < _near(distance), left, right, 0.5)
    c = centre(x, mu)
    near, far = left - c, mu - c
    total = near.square().sum(1)[:, None] + far.square().sum(1)
    square = total - 2 * (near @ far.mT)
    share = _near(square) if metric == SQEUCLIDEAN else 2.0**-8
    # Squares that overflow leave a NaN, which direct differences resolve.
    close = ~(square >= share * total) & _finite(left)[:, None] & _finite(mu)
    square = _repaired(square, close, left, mu, 1.0)
    if metric == SQEUCLIDEAN:
        return square
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def prototype_distance_backward(
    x: Tensor, mu: Tensor, distance: Tensor, grad: Tensor, metric: int, need: int
) -> tuple[Tensor, Tensor]:
    """(dx in x's dtype, dmu); one that ``need`` (bits 1 and 2) leaves out has no elements.

    A row of x whose gradients are all 0 takes no part, whatever its values are.
    """
    active = (grad != 0).any(1)[:, None]
    left = torch.where(active, x.to(mu.dtype), 0.0)
    distance = torch.where(active, distance, 0.0)
    pull = Pull.of(x, left, mu, distance, grad, metric)
    return (
        pull.to_points().to(x.dtype) if need & 1 else x.new_empty(0),
        pull.to_prototypes() if need & 2 else mu.new_empty(0),
    )


@dataclass(frozen=True)
class Pull:
    """What the gradient to both sides is made of.

    Each is  scale_i (sum_j weight_ij b_j - along_i a_i)  for vectors a of its own side and b of the
    other: centred, normalised or as they are.
    """

    metric: int
    weight: Tensor
    along: Tensor
    left: Tensor
    right: Tensor
    scale: tuple[Tensor, Tensor] | None

    @classmethod
    def of(
        cls, x: Tensor, left: Tensor, mu: Tensor, distance: Tensor, grad: Tensor, metric: int
    ) -> Pull:
        if metric == DOT:
            return cls(metric, -grad, torch.zeros_like(grad), left, mu, None)
        if metric == COSINE:
            (left, inverse), (right, other) = unit(left), unit(mu)
            along = -grad * (1 - distance)
            return cls(metric, -grad, along, left, right, (inverse, other))
        if metric == SQEUCLIDEAN:
            weight = -2 * grad
        else:
            zero = distance == 0
            weight = torch.where(zero, 0.0, -grad / torch.where(zero, 1.0, distance))
        c = centre(x, mu)
        return cls(metric, weight, weight, left - c, mu - c, None)

    def to_points(self) -> Tensor:
        found = self.weight @ self.right - self.along.sum(1, keepdim=True) * self.left
        return found if self.scale is None else found * self.scale[0]

    def to_prototypes(self) -> Tensor:
        found = self.weight.mT @ self.left - self.along.sum(0)[:, None] * self.right
        return found if self.scale is None else found * self.scale[1]


def centre(x: Tensor, mu: Tensor) -> Tensor:
    """c (D,): the mean of the finite prototypes, as x's dtype holds it; 0 where it cannot."""
    finite = _finite(mu)[:, None]
    total = torch.where(finite, mu.detach(), 0.0).double().sum(0)
    mean = (total / finite.sum().clamp(min=1)).to(x.dtype).to(mu.dtype)
    return torch.where(mean.isfinite(), mean, 0.0)


def unit(points: Tensor) -> tuple[Tensor, Tensor]:
    """points / |points| and 1 / |points| (n, 1), both 0 for a zero vector; NaN stays NaN."""
    squared = points.square().sum(1, keepdim=True)
    zero = squared < torch.finfo(points.dtype).tiny
    inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).rsqrt())
    return points * inverse, inverse


def traced() -> bool:
    """Whether a graph or torch.func follows: they cannot gather what the contents alone choose."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _near(like: Tensor) -> float:
    return 64 * torch.finfo(like.dtype).eps


def _finite(points: Tensor) -> Tensor:
    return points.detach().isfinite().all(1)


def _repaired(
    distance: Tensor, close: Tensor, left: Tensor, right: Tensor, factor: float
) -> Tensor:
    """distance, and factor |left_i - right_j|^2 where a pair is close."""
    if traced() or close.numel() * left.shape[1] <= _DENSE:
        direct = factor * (left[:, None] - right).square().sum(2)
        return torch.where(close, direct, distance)
    rows, columns = close.nonzero(as_tuple=True)
    direct = factor * (left[rows] - right[columns]).square().sum(1)
    return distance.index_put((rows, columns), direct)
