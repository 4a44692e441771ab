"""The estimators: scikit-learn's own checks, and its estimators of the same formulas."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_iris, make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fedkernels
from fedkernels.prototype.sklearn import KMeans, NearestPrototype

pytestmark = pytest.mark.once

ESTIMATORS = [
    NearestPrototype(),
    NearestPrototype(metric="cosine", prior="empirical", temperature=0.5, momentum=0.9),
    KMeans(),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_prototype_is_nearest_centroid(dtype):
    X, y = load_iris(return_X_y=True)
    X = X.astype(dtype)
    ours = NearestPrototype(metric="euclidean").fit(X, y)
    theirs = NearestCentroid().fit(X.astype(np.float64), y)
    assert ours.prototypes_.dtype == dtype
    np.testing.assert_allclose(ours.prototypes_, theirs.centroids_, rtol=4 * np.finfo(dtype).eps)
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    probability = ours.predict_proba(X)
    assert np.array_equal(probability.argmax(1), ours.decision_function(X).argmax(1))
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-5)


def test_probabilities_are_the_softmax_of_decisions():
    X, y = make_blobs(200, centers=[[0, 0], [1, 1], [2, 0]], random_state=0)
    X, y = X[y + (np.arange(200) % 3 == 0) < 3], y[y + (np.arange(200) % 3 == 0) < 3]
    for prior in ("uniform", "empirical", [0.2, 0.2, 0.6], [1, 0, 1]):
        model = NearestPrototype(temperature=0.7, prior=prior).fit(X, y)
        logits = model.decision_function(X)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        expected = shares / shares.sum(1, keepdims=True)
        np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-9, atol=1e-12)
        assert np.array_equal(model.predict(X), model.classes_[logits.argmax(1)])
    assert (model.predict_proba(X)[:, 1] == 0).all()
    empirical = NearestPrototype(prior="empirical").fit(X, y)
    np.testing.assert_allclose(empirical.class_prior_, np.bincount(y) / len(y))


def test_two_classes_have_one_decision():
    X, y = make_blobs(60, centers=2, random_state=1)
    names = np.array(["no", "yes"])[y]
    model = NearestPrototype().fit(X, names)
    assert model.decision_function(X).shape == (60,)
    assert np.array_equal(model.predict(X) == "yes", model.decision_function(X) > 0)


def test_batches_add_up_to_one_fit():
    X, y = make_blobs(300, centers=4, random_state=2)
    weight = np.random.default_rng(0).random(300)
    whole = NearestPrototype(prior="empirical").fit(X, y, weight)
    parts = NearestPrototype(prior="empirical")
    for at in range(0, 300, 50):
        rows = slice(at, at + 50)
        parts.partial_fit(X[rows], y[rows], classes=range(4), sample_weight=weight[rows])
    np.testing.assert_allclose(parts.prototypes_, whole.prototypes_, rtol=1e-12)
    np.testing.assert_allclose(parts.class_prior_, whole.class_prior_, rtol=1e-12)


def test_momentum_keeps_a_share_of_the_means():
    X, y = np.array([[1.0], [2.0], [10.0]]), np.array([0, 0, 1])
    model = NearestPrototype(momentum=0.75).partial_fit(X[:2], y[:2], classes=[0, 1, 2])
    assert model.prototypes_.tolist() == [[1.5], [0.0], [0.0]]
    model.partial_fit(np.array([[3.5], [10.0]]), [0, 1])
    # A class that is new has its batch's mean; one that never came is never predicted.
    assert model.prototypes_.tolist() == [[2.0], [10.0], [0.0]]
    assert model.predict([[0.1], [9.0]]).tolist() == [0, 1]
    assert (model.predict_proba([[0.0]])[:, 2] == 0).all()


def test_bad_input_of_nearest_prototype_is_one_line():
    X, y = np.eye(3), np.arange(3)
    for change, message in (
        ({"prior": "flat"}, "prior must be uniform, empirical or an array"),
        ({"prior": [1.0, 2.0]}, r"prior must be \(3,\), not negative"),
        ({"prior": [1.0, -2.0, 1.0]}, r"prior must be \(3,\), not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            NearestPrototype(**change).fit(X, y)
    with pytest.raises(ValueError, match="metric must be one of"):
        NearestPrototype(metric="l1").fit(X, y).predict(X)
    with pytest.raises(ValueError, match="temperature must be"):
        NearestPrototype(temperature=0.0).fit(X, y).predict_proba(X)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        NearestPrototype().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"not among the fitted ones: \[2\]"):
        NearestPrototype().partial_fit(X, y, classes=[0, 1, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_is_scikit_learns_from_the_same_centers(dtype):
    X, _ = make_blobs(500, n_features=5, centers=12, random_state=3)
    X = X.astype(dtype)
    options = {"init": X[:12], "n_init": 1, "tol": 0.0}
    ours, theirs = KMeans(12, **options).fit(X), cluster.KMeans(12, **options).fit(X)
    assert ours.n_iter_ == theirs.n_iter_ and np.array_equal(ours.labels_, theirs.labels_)
    assert ours.cluster_centers_.dtype == dtype
    tolerance = 500 * np.finfo(dtype).eps
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=tolerance)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=tolerance)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=tolerance)
    np.testing.assert_allclose(ours.score(X), theirs.score(X), rtol=tolerance)
    assert np.array_equal(ours.predict(X), ours.labels_)
    assert ours.get_feature_names_out()[0] == "kmeans0"


def test_more_runs_are_no_worse_and_a_seed_decides():
    X, _ = make_blobs(400, centers=9, random_state=4)
    one, four = KMeans(9, random_state=0).fit(X), KMeans(9, n_init=4, random_state=0).fit(X)
    assert four.inertia_ <= one.inertia_
    again = KMeans(9, random_state=0).fit(X)
    assert np.array_equal(one.cluster_centers_, again.cluster_centers_)
    for change, message in (
        ({"n_init": 0}, "n_init must be at least 1"),
        ({"n_clusters": 401}, "n_samples=400 should be at least n_clusters=401"),
        ({"n_clusters": 0}, "k must lie between 1 and"),
        ({"init": np.ones((3, 2))}, r"init must be \(8, 2\)"),
        ({"init": "random"}, "init must be k-means"),
    ):
        with pytest.raises(ValueError, match=message):
            KMeans(**change).fit(X)


def test_they_work_in_pipelines_and_searches_and_can_be_pickled():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), KMeans(6, random_state=0), NearestPrototype())
    search = GridSearchCV(pipeline, {"nearestprototype__metric": ["sqeuclidean", "cosine"]})
    search.fit(X, y)
    assert search.best_score_ > 0.8
    # How scikit-learn itself copies and keeps estimators; nothing foreign is read.
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.predict(X), search.predict(X))


_WITHOUT = """
    import sys
    sys.modules["sklearn"] = None  # as if it were not installed
    import fedkernels.prototype
    try:
        import fedkernels.prototype.sklearn
    except ImportError as error:
        print(error)
"""


def test_without_scikit_learn_one_line_says_so():
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_WITHOUT)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "needs scikit-learn 1.6 or later (pip install 'fedkernels[sklearn]')" in done.stdout


def test_importing_the_family_leaves_scikit_learn_alone():
    code = "import sys, fedkernels.prototype; print('sklearn' in sys.modules)"
    folder = str(fedkernels.__path__[0]) + "/.."
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
