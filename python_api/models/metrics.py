"""Metrics of one split, and how generated answers are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["answers_match", "classification_metrics", "extract_answer"]

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of ``logits (N, C)`` against ``labels (N,)``.

    accuracy: share correct. balanced_accuracy: mean recall over the classes that occur. macro_f1:
    mean F1 over the classes that occur or are predicted. auc: area under the ROC curve, for two
    classes that both occur. loss: mean cross-entropy, unweighted.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0]])
        >>> classification_metrics(logits, torch.tensor([0, 1, 1, 1]))["accuracy"]
        0.75
    """
    logits = logits.double()
    classes = logits.shape[1]
    guess = logits.argmax(1)
    # counts[truth, guess]
    counts = torch.bincount(labels * classes + guess, minlength=classes * classes)
    counts = counts.view(classes, classes).double()
    right, truth, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs, named = truth > 0, (truth + guessed) > 0
    metrics = {
        "accuracy": float(right.sum() / counts.sum()),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        "balanced_accuracy": float((right[occurs] / truth[occurs]).mean()),
        "macro_f1": float((2 * right / (truth + guessed).clamp(min=1))[named].mean()),
    }
    if classes == 2 and bool(occurs.all()):
        metrics["auc"] = _auc(logits[:, 1] - logits[:, 0], labels == 1)
    return metrics


def _auc(scores: Tensor, positive: Tensor) -> float:
    """Share of (positive, negative) pairs in the right order, ties half: the mean rank of the
    positives, less what they rank among themselves."""
    _, inverse, tied = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = (tied.cumsum(0) - (tied - 1) / 2)[inverse]  # from 1, ties share their mean
    n = int(positive.sum())
    total = float(ranks[positive].sum()) - n * (n + 1) / 2
    return total / (n * (len(scores) - n))


def extract_answer(text: str) -> str:
    """What a worked answer ends with: after the last ``####``, or after the last "answer is", or
    the last line.

    Example:
        >>> extract_answer("2 + 2 = 4\\n#### 4"), extract_answer("So the answer is 1,200.")
        ('4', '1,200')
    """
    for mark in ("####", "answer is"):
        if mark in text:
            text = text.rsplit(mark, 1)[1].lstrip(": ")
            return text.strip().split("\n")[0].strip().rstrip(".")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""


def answers_match(given: str, expected: str) -> bool:
    """Whether two answers are the same: as floats if the expected one is a number (of the given
    one, its last number counts), else as texts without case and with single spaces.

    Example:
        >>> answers_match("1,200.0", "1.2e+03"), answers_match("the answer is 7", "8")
        (True, False)
    """
    given, expected = extract_answer(given), extract_answer(expected)
    want = _number(expected)
    if want is None:
        return " ".join(given.lower().split()) == " ".join(expected.lower().split())
    found = _NUMBER.findall(given)
    have = _number(found[-1]) if found else None
    return have is not None and math.isclose(have, want, rel_tol=1e-6, abs_tol=1e-9)


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "").replace("$", "").strip().rstrip("."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def exact_match(given: Sequence[str], expected: Sequence[str]) -> float:
    """Share of answers that match."""
    pairs = list(zip(given, expected, strict=True))
    return sum(answers_match(g, e) for g, e in pairs) / len(pairs)
