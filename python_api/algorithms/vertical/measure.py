"""What is measured of a vertical run, by the side that holds the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkernels import kmeans
from python_api.models.metrics import classification_metrics

__all__ = ["decision_metrics", "leakage", "nearest_row", "plane"]


def decision_metrics(
    scores: Tensor, y: Tensor, labels: Sequence[str], unseen: Sequence[int] = ()
) -> dict[str, float]:
    """`classification_metrics`, `recall_<class>` of the classes that occur, and, where a class is
    unseen in training, seen_accuracy, unseen_accuracy and their harmonic_mean."""
    found = classification_metrics(scores, y)
    right = scores.argmax(1) == y
    for c, label in enumerate(labels):
        at = y == c
        if bool(at.any()):
            found[f"recall_{label}"] = float(right[at].double().mean())
    if unseen:
        hidden = torch.isin(y, torch.tensor(list(unseen)))
        if bool(hidden.any()) and not bool(hidden.all()):
            new, old = (float(right[at].double().mean()) for at in (hidden, ~hidden))
            found |= {
                "seen_accuracy": old,
                "unseen_accuracy": new,
                "harmonic_mean": 2 * old * new / (old + new) if old + new else 0.0,
            }
    return found


def leakage(grads: Tensor, y: Tensor, classes: int, *, seed: int = 0) -> dict[str, float]:
    """What gradients (n, d) that were sent to a party tell about the labels y (n,).

    purity: the share of rows in the majority class of their cluster, of `classes` clusters that
        k-means finds in the gradients' directions; chance: the largest class's share.
    auc, for two classes: of the first principal direction, whichever way round is better.
    """
    n = len(grads)
    if n < 2 * classes:
        return {}
    unit = torch.nn.functional.normalize(grads.float(), dim=1)
    found = kmeans(unit, classes, generator=torch.Generator().manual_seed(seed))
    table = torch.zeros(classes, classes)
    table.index_put_((found.index, y), torch.ones(n), accumulate=True)
    told = {
        "purity": float(table.amax(1).sum() / n),
        "chance": float(torch.bincount(y).max() / n),
        "gradients": float(n),
    }
    if classes == 2 and len(y.unique()) == 2:
        axis = torch.linalg.svd(unit - unit.mean(0), full_matrices=False).Vh[0]
        score = unit @ axis
        auc = classification_metrics(torch.stack([-score, score], 1), y)["auc"]
        told["auc"] = max(auc, 1 - auc)
    return told


def nearest_row(prototypes: Tensor, h: Tensor) -> tuple[float, float]:
    """(mean distance from a prototype to the nearest row, median distance from a row to the nearest
    other row), both of directions: how close a prototype that is sent lies to one person's row."""
    unit = torch.nn.functional.normalize(h.double(), dim=1)
    mine = torch.nn.functional.normalize(prototypes.double(), dim=1)
    if len(unit) < 2 or not len(mine):
        return float("nan"), float("nan")
    unit = unit[:2000]
    between = torch.cdist(unit, unit)
    between.fill_diagonal_(torch.inf)
    return float(torch.cdist(mine, unit).amin(1).mean()), float(between.amin(1).median())


def plane(
    h: Tensor, y: Tensor, prototypes: Tensor, *, most: int = 300
) -> tuple[Tensor, Tensor, Tensor]:
    """Up to `most` rows (n, 2), their labels, and the prototypes (C, 2), in the first two principal
    directions of the rows' directions."""
    unit = torch.nn.functional.normalize
    step = max(1, -(-len(h) // most))
    rows, labels, mu = unit(h[::step], dim=1), y[::step], unit(prototypes, dim=1)
    centre = rows.mean(0)
    axes = torch.linalg.svd(rows - centre, full_matrices=False).Vh[:2].T
    return (rows - centre) @ axes, labels, (mu - centre) @ axes
