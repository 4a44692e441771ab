"""From the gradient to a matrix of costs to the gradients of the points it came from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["points_gradient"]


def points_gradient(weight: Tensor, x: Tensor, y: Tensor, metric: int) -> tuple[Tensor, Tensor]:
    """(dx (B, n, D), dy (B, m, D)) for weight = dL/dC (B, n, m); 0 wherever it is 0.

    squared Euclidean  dx_i = 2 sum_j W_ij (x_i - y_j)
    Euclidean          the same with W_ij / (2 C_ij), and 0 where C_ij = 0
    cosine             dx_i = -(I - x^ x^T) (sum_j W_ij y^_j) / |x_i|, ^ the unit vectors, 0 at 0
    """
    x, y, W = x.double(), y.double(), weight.double()
    # Rows without weight are padding, or of a bad problem: their points may be anything.
    x = torch.where((W != 0).any(2)[:, :, None], x, 0.0)
    y = torch.where((W != 0).any(1)[:, :, None], y, 0.0)
    if metric == 2:
        return _cosine(W, x, y), _cosine(W.mT, y, x)
    if metric == 1:
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        W = torch.where(distance == 0, 0.0, 0.5 * W / torch.where(distance == 0, 1.0, distance))
    # Differences of near points cancel less around a common centre.
    centre = x.mean(1, keepdim=True) if x.shape[1] else 0.0
    x, y = x - centre, y - centre
    return 2 * (W.sum(2)[:, :, None] * x - W @ y), 2 * (W.sum(1)[:, :, None] * y - W.mT @ x)


def _cosine(W: Tensor, x: Tensor, y: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    unit_x, unit_y = _unit(x), _unit(y)
    pull = W @ unit_y
    along = (pull * unit_x).sum(2, keepdim=True)
    tangent = along * unit_x - pull
    return torch.where(length == 0, 0.0, tangent / torch.where(length == 0, 1.0, length))


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return torch.where(length == 0, 0.0, x / torch.where(length == 0, 1.0, length))
