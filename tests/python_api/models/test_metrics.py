"""Metrics against scikit-learn's, and the comparison of answers."""

from __future__ import annotations

import pytest
import torch

from python_api.models.metrics import answers_match, classification_metrics, extract_answer


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("rows", [2, 5, 60])
def test_against_scikit_learn(classes, rows):
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(classes * 100 + rows)
    # Rounded: many ties for the curve.
    logits = (torch.randn(rows, classes, generator=draw) * 2).round() / 2
    labels = torch.randint(classes, (rows,), generator=draw)
    labels[:2] = torch.tensor([0, 1])
    found = classification_metrics(logits, labels)
    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    want = metrics.recall_score(
        truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0
    )
    assert found["balanced_accuracy"] == pytest.approx(want)
    want = metrics.f1_score(truth, guess, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(want)
    want = metrics.log_loss(truth, logits.double().softmax(1).numpy(), labels=range(classes))
    assert found["loss"] == pytest.approx(want)
    assert ("auc" in found) == (classes == 2)
    if classes == 2:
        want = metrics.roc_auc_score(truth, (logits[:, 1] - logits[:, 0]).numpy())
        assert found["auc"] == pytest.approx(want)


def test_no_auc_where_one_class_is_absent():
    assert "auc" not in classification_metrics(torch.zeros(3, 2), torch.tensor([1, 1, 1]))


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("#### 1,200", "1200", True),
        ("x\n#### 1.2e+06", "1200000.0", True),
        ("#### $3.50", "3.5", True),
        ("so it is 7 apples", "7", True),
        ("so it is 8 apples", "7", False),
        ("no number", "7", False),
        ("first line\nBlue  sky", "blue sky", True),
        ("The answer is (b).", "answer is (B)", True),
        ("", "7", False),
        ("-3", "3", False),
        ("7 of 10", "7", False),  # the last number counts
        ("nan", "nan", True),
    ],
)
def test_answers(given, expected, same):
    assert answers_match(given, expected) is same


def test_the_answer_is_what_stands_after_the_last_mark():
    assert extract_answer("#### 3\nmore\n#### 4\n") == "4"
    assert extract_answer("one\n two \n\n") == "two"
