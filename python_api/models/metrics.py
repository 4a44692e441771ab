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
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    logits = logits.double()
    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    present = sorted(set(truth.tolist()))
    metrics = {
        "accuracy": float((truth == guess).mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        "balanced_accuracy": float(
            recall_score(truth, guess, labels=present, average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
    }
    if logits.shape[1] == 2 and len(present) == 2:
        metrics["auc"] = float(roc_auc_score(truth, (logits[:, 1] - logits[:, 0]).numpy()))
    return metrics


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
