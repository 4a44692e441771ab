"""An independent statement of the family: dense numpy, from direct differences, in long double.

Nothing is expanded, centred or repaired here, and gradients are the chain rule through the full
Jacobian of a distance, (N, K, D).
"""

from __future__ import annotations

import numpy as np

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")


def distances(x: np.ndarray, mu: np.ndarray, metric: str) -> np.ndarray:
    if metric == "dot":
        return -(x[:, None] * mu).sum(-1)
    if metric == "cosine":
        # 1 - cos is half of the squared distance of the unit vectors.
        apart = _unit(x)[:, None] - _unit(mu)
        return (apart * apart).sum(-1) / 2
    apart = x[:, None] - mu
    square = (apart * apart).sum(-1)
    return square if metric == "sqeuclidean" else np.sqrt(square)


def pull(x: np.ndarray, mu: np.ndarray, metric: str, grad: np.ndarray) -> dict[str, np.ndarray]:
    """dx and dmu for dL/d distance."""
    if metric == "dot":
        to_x, to_mu = np.broadcast_to(-mu, (*grad.shape, mu.shape[1])), -x[:, None]
    elif metric == "cosine":
        lengths = [np.sqrt((t * t).sum(-1)) for t in (x, mu)]
        left, right = _unit(x)[:, None], _unit(mu)[None]
        cos = (left * right).sum(-1)[..., None]
        to_x = -(right - cos * left) / lengths[0][:, None, None]
        to_mu = -(left - cos * right) / lengths[1][None, :, None]
    else:
        apart = x[:, None] - mu
        to_x = 2 * apart
        if metric == "euclidean":
            length = np.sqrt((apart * apart).sum(-1))[..., None]
            to_x = np.where(length == 0, 0, apart / np.where(length == 0, 1, length))
        to_mu = -to_x
    return {"dx": (grad[..., None] * to_x).sum(1), "dmu": (grad[..., None] * to_mu).sum(0)}


def logits(
    distance: np.ndarray, temperature: float, log_prior: np.ndarray | None, mask: np.ndarray | None
) -> np.ndarray:
    logit = -distance / np.longdouble(temperature)
    if log_prior is not None:
        logit = logit + log_prior
    return logit if mask is None else np.where(mask, logit, -np.inf)


def softmax(logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prob, lse); a row without anything is (0, -inf)."""
    top = logit.max(1, keepdims=True)
    top = np.where(np.isinf(top), 0, top)
    weight = np.exp(logit - top)
    total = weight.sum(1, keepdims=True)
    empty = total == 0
    lse = np.where(empty, -np.inf, np.log(np.where(empty, 1, total)) + top)
    return weight / np.where(empty, 1, total), lse[:, 0]


def pull_softmax(
    prob: np.ndarray, g_prob: np.ndarray, g_lse: np.ndarray, g_mass: np.ndarray
) -> np.ndarray:
    """dL/dlogit through the Jacobian of a softmax, diag(p) - p p^T, row by row."""
    upstream = g_prob + g_mass
    jacobian = prob[:, :, None] * (np.eye(prob.shape[1]) - prob[:, None, :])
    return (jacobian * upstream[:, None, :]).sum(-1) + prob * g_lse[:, None]


def weights(
    target: np.ndarray, classes: int, class_weight: np.ndarray | None, ignore_index: int
) -> np.ndarray:
    """w_j t_ij; a row of zeros where it is ignored."""
    if target.ndim == 1:
        t = (target[:, None] == np.arange(classes)) & (target != ignore_index)[:, None]
        target = t.astype(np.longdouble)
    return target if class_weight is None else target * class_weight


def cross_entropy(
    logit: np.ndarray, weight: np.ndarray, reduction: str, row_weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, dL/dlogit for an upstream of 1, or of row_weight)."""
    prob, lse = softmax(logit)
    weight = np.where(np.isinf(lse)[:, None], 0, weight)
    with np.errstate(invalid="ignore"):
        apart = np.where(weight == 0, 0, lse[:, None] - logit)
    rows = (weight * apart).sum(1)
    total = weight.sum() if reduction == "mean" else np.longdouble(1)
    grad = weight.sum(1, keepdims=True) * prob - weight
    with np.errstate(invalid="ignore"):  # a mean over nothing is NaN, and nothing has a gradient
        loss = rows if reduction == "none" else rows.sum() / total
        grad = np.where(np.isinf(logit) | (weight == 0).all(1)[:, None], 0, grad / total)
    return loss, grad if row_weight is None else grad * row_weight[:, None]


def _unit(points: np.ndarray) -> np.ndarray:
    length = np.sqrt((points * points).sum(-1, keepdims=True))
    return points / np.where(length == 0, 1, length)
