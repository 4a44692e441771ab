"""The family behind scikit-learn's interface, for its pipelines, searches and scorers.

`NearestPrototype` classifies by the nearest class mean, `KMeans` clusters. Both take numpy arrays
and anything that scikit-learn turns into them, compute in the dtype of X (float32 or float64), and
keep numpy arrays: they can be pickled and cloned. Needs scikit-learn 1.6 or later.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels import _check
from fedkernels.prototype.assign import prototype_assign
from fedkernels.prototype.check import METRICS
from fedkernels.prototype.class_mean import class_mean
from fedkernels.prototype.distance import prototype_distance
from fedkernels.prototype.kmeans import kmeans
from fedkernels.prototype.softmax import prototype_softmax

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        ClusterMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "fedkernels.prototype.sklearn needs scikit-learn 1.6 or later "
        f"(pip install 'fedkernels[sklearn]'): {error}"
    ) from None

__all__ = ["KMeans", "NearestPrototype"]

_FLOATS = (np.float64, np.float32)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class NearestPrototype(ClassifierMixin, BaseEstimator):
    """Classifies by distances to the class means: softmax_k(-distance / temperature + log prior).

    metric: "sqeuclidean", "euclidean", "cosine" (1 - cos) or "dot". temperature scales
    probabilities. prior: "uniform", "empirical" (the shares of the classes in what was fitted) or
    an array (n_classes,). momentum: what ``partial_fit`` keeps of a mean that it has; None: means
    of all rows so far. backend: as of every function of the family.

    Fitted: classes_, prototypes_ (n_classes, n_features), class_count_ (n_classes,), the sum of the
    rows' weights, class_prior_ (n_classes,), n_features_in_.

    >>> X, y = [[0.0, 1.0], [1.0, 1.0], [8.0, 9.0]], ["near", "near", "far"]
    >>> model = NearestPrototype().fit(X, y)
    >>> model.predict([[7.0, 7.0]]).tolist(), model.prototypes_.tolist()
    (['far'], [[8.0, 9.0], [0.5, 1.0]])
    """

    classes_: np.ndarray

    def __init__(
        self,
        *,
        metric: str = "sqeuclidean",
        temperature: float = 1.0,
        prior: Any = "uniform",
        momentum: float | None = None,
        backend: str = "auto",
    ) -> None:
        self.metric = metric
        self.temperature = temperature
        self.prior = prior
        self.momentum = momentum
        self.backend = backend

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NearestPrototype:
        """The mean of each class, weighted by sample_weight (n_samples,), not negative."""
        for name in ("classes_", "prototypes_", "class_count_"):
            self.__dict__.pop(name, None)
        return self._update(X, y, None, sample_weight, None)

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> NearestPrototype:
        """Moves the means towards those of one more batch.

        classes: all that will ever come, needed in the first call. A class that was not in any
        batch yet is never predicted.
        """
        if not hasattr(self, "classes_") and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return self._update(X, y, classes, sample_weight, self.momentum)

    def predict(self, X: Any) -> np.ndarray:
        """The class whose prototype is nearest, after the prior."""
        x, mu, seen = self._ready(X)
        if np.ptp(self.class_prior_[self._seen()]) == 0:
            found = prototype_assign(x, mu, metric=self.metric, mask=seen, backend=self.backend)
            index = found.index[:, 0]
        else:
            index = self._logits(x, mu).argmax(1)
        names: np.ndarray = self.classes_[index.numpy()]
        return names

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n_samples, n_classes)"""
        x, mu, seen = self._ready(X)
        found = prototype_softmax(
            x,
            mu,
            metric=self.metric,
            temperature=self.temperature,
            log_prior=self._log_prior(mu),
            mask=seen,
            backend=self.backend,
        ).prob
        assert found is not None
        array: np.ndarray = found.numpy()
        return array

    def decision_function(self, X: Any) -> np.ndarray:
        """-distance / temperature + log prior, (n_samples, n_classes); of two classes the second's
        less the first's, (n_samples,)."""
        x, mu, _ = self._ready(X)
        logits: np.ndarray = self._logits(x, mu).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def _update(self, X, y, classes, sample_weight, momentum) -> NearestPrototype:
        first = not hasattr(self, "classes_")
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=_FLOATS, reset=first)
        check_classification_targets(y)
        names = np.unique(y if classes is None else classes) if first else self.classes_
        labels = np.searchsorted(names, y).clip(max=len(names) - 1)
        if not np.array_equal(names[labels], y):
            new = np.setdiff1d(y, names)
            raise ValueError(f"y holds classes that are not among the fitted ones: {new.tolist()}")
        weight = None
        mass: np.ndarray = np.bincount(labels, minlength=len(names)).astype(np.float64)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            mass = np.bincount(labels, weights=weight, minlength=len(names))
        mean = class_mean(
            _tensor(X),
            torch.from_numpy(labels),
            len(names),
            weight=None if weight is None else _tensor(weight),
            backend=self.backend,
        ).mean.numpy()
        if first:
            prior = self._prior(mass)  # raises before anything counts as fitted
            self.classes_, self.prototypes_, self.class_count_ = names, mean, mass
        else:
            total = self.class_count_ + mass
            share = mass / np.where(total > 0, total, 1)
            if momentum is not None:
                share = np.where(self.class_count_ > 0, (1 - momentum) * (mass > 0), mass > 0)
            step = share[:, None] * (mean - self.prototypes_)
            self.prototypes_ = (self.prototypes_ + step).astype(self.prototypes_.dtype)
            self.class_count_ = total
            prior = self._prior(total)
        self.class_prior_ = prior
        return self

    def _check_parameters(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {self.metric!r}")
        _check.number("temperature", self.temperature)
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.momentum is not None:
            _check.number("momentum", self.momentum)
            if not 0 <= self.momentum <= 1:
                raise ValueError(f"momentum must be between 0 and 1, got {self.momentum}")

    def _prior(self, mass: np.ndarray) -> np.ndarray:
        count = len(mass)
        if isinstance(self.prior, str):
            if self.prior == "uniform":
                return np.full(count, 1.0 / count)
            if self.prior == "empirical":
                return mass / max(mass.sum(), np.finfo(np.float64).tiny)
            raise ValueError(
                f"prior must be uniform, empirical or an array ({count},); got {self.prior!r}"
            )
        prior = np.asarray(self.prior, dtype=np.float64)
        if prior.shape != (count,) or not (prior >= 0).all() or not 0 < prior.sum() < np.inf:
            raise ValueError(
                f"prior must be ({count},), not negative and not all 0; got {prior.tolist()}"
            )
        return prior / prior.sum()

    def _seen(self) -> np.ndarray:
        return self.class_count_ > 0

    def _ready(self, X: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(X, the prototypes in X's dtype, which of them exist)"""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.prototypes_.dtype, reset=False)
        return _tensor(X), _tensor(self.prototypes_), torch.from_numpy(self._seen())

    def _log_prior(self, mu: Tensor) -> Tensor:
        return torch.from_numpy(self.class_prior_).log().to(mu.dtype)

    def _logits(self, x: Tensor, mu: Tensor) -> Tensor:
        distance = prototype_distance(x, mu, metric=self.metric, backend=self.backend)
        logits = -distance / self.temperature + self._log_prior(mu)
        return torch.where(torch.from_numpy(self._seen()), logits, -torch.inf)


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means++ and Lloyd's iterations: `fedkernels.kmeans`, the best of ``n_init`` runs.

    Arguments and fitted attributes are named as in ``sklearn.cluster.KMeans``, and the same first
    centers give the same iterations. n_init: runs from different seeds; "auto" is 1. init:
    "k-means++" or an array (n_clusters, n_features). Rows have no weights.

    Fitted: cluster_centers_, labels_, inertia_, n_iter_, n_features_in_.

    >>> X = [[0.0], [1.0], [10.0], [11.0]]
    >>> model = KMeans(2, random_state=0).fit(X)
    >>> sorted(model.cluster_centers_.ravel().tolist()), model.inertia_
    ([0.5, 10.5], 1.0)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        backend: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.backend = backend

    def fit(self, X: Any, y: Any = None) -> KMeans:
        """Clusters X (n_samples, n_features); y is ignored."""
        X = validate_data(self, X, dtype=_FLOATS)
        clusters = operator.index(self.n_clusters)
        if X.shape[0] < clusters:
            raise ValueError(f"n_samples={X.shape[0]} should be at least n_clusters={clusters}")
        init = self.init
        if not isinstance(init, str):
            init = _tensor(np.asarray(init, dtype=X.dtype))
        given: Any = 1 if self.n_init == "auto" or not isinstance(init, str) else self.n_init
        runs = operator.index(given)
        if runs < 1:
            raise ValueError(f"n_init must be at least 1, or 'auto'; got {self.n_init}")
        random = check_random_state(self.random_state)
        best = None
        for _ in range(runs):
            found = kmeans(
                _tensor(X),
                clusters,
                init=init,
                max_iter=operator.index(self.max_iter),
                tol=float(self.tol),
                generator=torch.Generator().manual_seed(int(random.randint(2**31 - 1))),
                backend=self.backend,
            )
            if best is None or found.inertia < best.inertia:
                best = found
        assert best is not None
        self.cluster_centers_ = best.centers.numpy()
        self.labels_ = best.index.numpy().astype(np.int32)
        self.inertia_ = best.inertia.item()
        self.n_iter_ = best.n_iter
        self._n_features_out = clusters
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The nearest centre of each row; of equally near ones the first."""
        x, centers = self._ready(X)
        index: np.ndarray = prototype_assign(x, centers, backend=self.backend).index[:, 0].numpy()
        return index.astype(np.int32)

    def transform(self, X: Any) -> np.ndarray:
        """The Euclidean distance to each centre, (n_samples, n_clusters)."""
        x, centers = self._ready(X)
        found: np.ndarray = prototype_distance(
            x, centers, metric="euclidean", backend=self.backend
        ).numpy()
        return found

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of the squared distances to the nearest centres."""
        x, centers = self._ready(X)
        distance = prototype_assign(x, centers, backend=self.backend).distance
        return -distance.double().sum().item()

    def _ready(self, X: Any) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.cluster_centers_.dtype, reset=False)
        return _tensor(X), _tensor(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
