"""Classes that the active party has no rows of: the calibrated vote, and relations of classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NEVER", "calibrated", "filled", "related", "relation_of"]

TEMPERATURE = 0.1  # of the weights over related classes
NEVER = -1e4  # the logit of a class of which nothing is known


def calibrated(logits: Tensor, known: Tensor) -> Tensor:
    """(B, C) log-probabilities of a party that knows some classes only.

    A class that it does not know gets log(1/C); the others share what is left, 1 - n/C for n such
    classes, as its softmax over them says. With all classes known: a log-softmax.

    >>> found = calibrated(torch.zeros(1, 4), torch.tensor([True, True, True, False]))
    >>> [round(value, 4) for value in found.exp()[0].tolist()]
    [0.25, 0.25, 0.25, 0.25]
    """
    classes = len(known)
    missing = classes - int(known.sum())
    if missing == 0:
        return torch.log_softmax(logits, 1)
    if missing == classes:
        return torch.full_like(logits, -math.log(classes))
    own = torch.log_softmax(logits.masked_fill(~known, -math.inf), 1)
    own = own + math.log(1 - missing / classes)
    return torch.where(known, own, own.new_tensor(-math.log(classes)))


def relation_of(prototypes: Tensor, known: Tensor) -> Tensor:
    """(C, C) cosines of class prototypes (C, d); 0 where one of the two is not known."""
    unit = torch.nn.functional.normalize(prototypes, dim=1)
    both = known[:, None] & known[None, :]
    return torch.where(both, unit @ unit.T, unit.new_zeros(()))


def related(known: Tensor, relation: Tensor) -> Tensor:
    """(C,) bool: a class that is known, or whose relation to some known class is.

    >>> related(torch.tensor([True, True, False]), torch.eye(3)).tolist()
    [True, True, False]
    """
    return known | (relation[:, known] != 0).any(1)


def filled(prototypes: Tensor, known: Tensor, relation: Tensor) -> Tensor:
    """The prototypes, those that are not known made of the known ones by their relation.

        mu_c = sum_{c' known} softmax_{c'}(relation[c, c'] / 0.1) mu_{c'} / |mu_{c'}|

    A class that relates to none stays as it is.
    """
    if bool(known.all()) or not bool(known.any()):
        return prototypes
    unit = torch.nn.functional.normalize(prototypes, dim=1)
    weight = torch.softmax((relation / TEMPERATURE).masked_fill(~known[None, :], -math.inf), dim=1)
    made = torch.nn.functional.normalize(weight @ unit, dim=1)
    made_up = ~known & related(known, relation)
    return torch.where(made_up[:, None], made, prototypes)
