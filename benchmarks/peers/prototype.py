"""What the prototype functions are compared with: PyTorch, scikit-learn, FAISS, flash-kmeans.

The literal forms leave out what the answer does not need: ``|x|^2`` is the same for all prototypes
of a row, so that neither a nearest prototype nor a softmax depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import ClusterProblem, MeanProblem, PrototypeProblem
from .contender import Contender, Peer, PeerMissing, without_recording

__all__ = ["ASSIGN", "BARE", "CDIST", "CROSS_ENTROPY", "DISTANCE", "KMEANS", "MEAN", "SOFTMAX"]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise PeerMissing(f"faiss: {error}") from None
    return faiss


# --- nearest ------------------------------------------------------------------------------------


def _nearest(problem: PrototypeProblem, squares: Callable[[Tensor, Tensor], Tensor]) -> Contender:
    """`squares(x, mu)`: (N, K), up to a number for each row that is added afterwards."""
    x, mu, k = problem.x.detach(), problem.mu.detach(), problem.nearest

    def forward() -> tuple[Tensor, Tensor]:
        values = squares(x, mu)
        if k == 1:
            best, index = values.min(1, keepdim=True)
        else:
            best, index = values.topk(k, largest=False)
        return best, index

    return Contender(forward, outputs=("distance", "index"))


def cdist_argmin(problem: PrototypeProblem) -> Contender:
    """Roots, of the winners alone squared again."""
    rooted = _nearest(problem, torch.cdist)

    def forward() -> tuple[Tensor, Tensor]:
        best, index = rooted.forward()
        return best.square(), index

    return Contender(forward, outputs=rooted.outputs)


def expansion_argmin(problem: PrototypeProblem) -> Contender:
    x = problem.x.detach()
    shifted = _nearest(problem, _without_rows)

    def forward() -> tuple[Tensor, Tensor]:
        best, index = shifted.forward()
        return best + x.square().sum(1, keepdim=True), index

    return Contender(forward, outputs=shifted.outputs)


def _without_rows(x: Tensor, mu: Tensor) -> Tensor:
    """|x - mu|^2 - |x|^2: one call of the platform's product."""
    return torch.addmm(mu.square().sum(1), x, mu.T, alpha=-2)


def sklearn_argmin(problem: PrototypeProblem) -> Contender:
    """Blocks of the platform's product with the minimum behind each: no (N, K) array either."""
    try:
        from sklearn.metrics import pairwise_distances_argmin_min
    except ImportError as error:
        raise PeerMissing(f"scikit-learn: {error}") from None
    x, mu = problem.x.detach().numpy(), problem.mu.detach().numpy()

    def forward() -> tuple[Tensor, Tensor]:
        index, distance = pairwise_distances_argmin_min(x, mu, metric="sqeuclidean")
        return torch.from_numpy(distance)[:, None], torch.from_numpy(index)[:, None]

    return Contender(forward, outputs=("distance", "index"))


def faiss_knn(problem: PrototypeProblem) -> Contender:
    """`faiss.knn`, which has kernels of its own for one nearest and for k."""
    faiss = _faiss()
    x, mu = problem.x.detach().numpy(), problem.mu.detach().numpy()

    def forward() -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        distance, index = faiss.knn(x, mu, problem.nearest)
        return torch.from_numpy(distance), torch.from_numpy(index)

    return Contender(forward, outputs=("distance", "index"))


def bare_product(problem: PrototypeProblem) -> Contender:
    """x mu^T and nothing else, into memory that is there: the platform's floor."""
    x, mu = problem.x.detach(), problem.mu.detach()
    out = x.new_empty(len(x), len(mu))
    return Contender(lambda: torch.mm(x, mu.T, out=out), outputs=("product",))


# --- distances, softmax, cross-entropy ------------------------------------------------------------


def _differentiable(
    problem: PrototypeProblem,
    function: Callable[..., Any],
    outputs: tuple[str, ...],
    upstream: tuple[Tensor | None, ...] = (),
) -> Contender:
    """`function(x, mu)`, and with it the gradients to both."""
    x, mu = problem.x, problem.mu

    def forward() -> Any:
        return function(x, mu)

    def step() -> tuple[Tensor, ...]:
        found = forward()
        found = found if isinstance(found, tuple) else (found,)
        grads = torch.autograd.grad(found, (x, mu), upstream or None)
        return (*found, *grads)

    return Contender(forward, step, outputs=outputs, gradients=("dx", "dmu"), parameters=(x, mu))


def cdist_squared(problem: PrototypeProblem) -> Contender:
    return _differentiable(
        problem, lambda x, mu: torch.cdist(x, mu).square(), ("distance",), (problem.upstream,)
    )


def expansion_distance(problem: PrototypeProblem) -> Contender:
    """The product, and in place behind it the rows' squares and the clamp at 0."""

    def squares(x: Tensor, mu: Tensor) -> Tensor:
        return _without_rows(x, mu).add_(x.square().sum(1, keepdim=True)).relu_()

    return _differentiable(problem, squares, ("distance",), (problem.upstream,))


def _logits(x: Tensor, mu: Tensor, temperature: float) -> Tensor:
    """-|x - mu|^2 / temperature + |x|^2 / temperature, in one call of the platform's product."""
    return torch.addmm(mu.square().sum(1) / -temperature, x, mu.T, alpha=2 / temperature)


def literal_softmax(problem: PrototypeProblem) -> Contender:
    def softmax(x: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        prob = _logits(x, mu, problem.temperature).softmax(1)
        return prob, prob.sum(0)

    upstream = problem.upstream, problem.upstream_mass
    return _differentiable(problem, softmax, ("prob", "mass"), upstream)


def cdist_softmax(problem: PrototypeProblem) -> Contender:
    def softmax(x: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        prob = (torch.cdist(x, mu).square() / -problem.temperature).softmax(1)
        return prob, prob.sum(0)

    upstream = problem.upstream, problem.upstream_mass
    return _differentiable(problem, softmax, ("prob", "mass"), upstream)


def _literal_loss(problem: PrototypeProblem) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(x: Tensor, mu: Tensor) -> Tensor:
        return F.cross_entropy(_logits(x, mu, problem.temperature), problem.label)

    return loss


def literal_cross_entropy(problem: PrototypeProblem) -> Contender:
    return without_recording(_differentiable(problem, _literal_loss(problem), ("loss",)))


def cdist_cross_entropy(problem: PrototypeProblem) -> Contender:
    def loss(x: Tensor, mu: Tensor) -> Tensor:
        return F.cross_entropy(torch.cdist(x, mu).square() / -problem.temperature, problem.label)

    return without_recording(_differentiable(problem, loss, ("loss",)))


def compiled_cross_entropy(problem: PrototypeProblem) -> Contender:
    """The literal form through torch.compile, which compiles before the clock runs."""
    loss = torch.compile(_literal_loss(problem), fullgraph=True, dynamic=False)
    return without_recording(_differentiable(problem, loss, ("loss",)))


# --- class means --------------------------------------------------------------------------------


def _mean(problem: MeanProblem, sums: Callable[[], Tensor]) -> Contender:
    """Sums over counts; a class without rows is 0, as ours is without a previous mean."""

    def forward() -> tuple[Tensor, Tensor]:
        count = torch.bincount(problem.label, minlength=problem.classes)
        return sums() / count.clamp(min=1)[:, None], count

    return Contender(forward, outputs=("mean", "count"))


def _zeros(problem: MeanProblem) -> Tensor:
    return problem.x.new_zeros(problem.classes, problem.x.shape[1])


def mean_index_add(problem: MeanProblem) -> Contender:
    return _mean(problem, lambda: _zeros(problem).index_add_(0, problem.label, problem.x))


def mean_scatter_add(problem: MeanProblem) -> Contender:
    index = problem.label[:, None].expand_as(problem.x)
    return _mean(problem, lambda: _zeros(problem).scatter_add_(0, index, problem.x))


def mean_one_hot(problem: MeanProblem) -> Contender:
    def sums() -> Tensor:
        hot = problem.x.new_zeros(len(problem.x), problem.classes)
        return hot.scatter_(1, problem.label[:, None], 1.0).T @ problem.x

    return _mean(problem, sums)


def mean_scatter_reduce(problem: MeanProblem) -> Contender:
    index = problem.label[:, None].expand_as(problem.x)

    def forward() -> tuple[Tensor, Tensor]:
        mean = _zeros(problem).scatter_reduce_(0, index, problem.x, "mean", include_self=False)
        return mean, torch.bincount(problem.label, minlength=problem.classes)

    return Contender(forward, outputs=("mean", "count"))


def mean_embedding_bag(problem: MeanProblem) -> Contender:
    """Rows in the order of their labels, gathered and averaged a bag at a time."""

    def forward() -> tuple[Tensor, Tensor]:
        order = problem.label.argsort(stable=True)
        count = torch.bincount(problem.label, minlength=problem.classes)
        mean = F.embedding_bag(order, problem.x, count.cumsum(0) - count, mode="mean")
        return mean, count

    return Contender(forward, outputs=("mean", "count"))


# --- k-means ------------------------------------------------------------------------------------


def sklearn_kmeans(problem: ClusterProblem) -> Contender:
    """Lloyd, from the same centres, as often; the labels are those of the centres it returns."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise PeerMissing(f"scikit-learn: {error}") from None
    x, start = problem.x.numpy(), problem.start.numpy()
    estimator = KMeans(
        len(start), init=start, n_init=1, max_iter=problem.iterations, tol=0, algorithm="lloyd"
    )

    def forward() -> tuple[Tensor, Tensor]:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped before it converged
            estimator.fit(x)
        centers = torch.from_numpy(estimator.cluster_centers_)
        return centers, torch.tensor(estimator.inertia_, dtype=torch.float64)

    return Contender(forward, outputs=("centers", "inertia"))


def faiss_kmeans(problem: ClusterProblem) -> Contender:
    """All points (by default it takes a sample), then the nearest of the centres it returns."""
    faiss = _faiss()
    x, start = problem.x.numpy(), problem.start.numpy()
    k, D = start.shape

    def forward() -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        found = faiss.Kmeans(
            D,
            k,
            niter=problem.iterations,
            max_points_per_centroid=len(x),
            min_points_per_centroid=1,
        )
        found.train(x, init_centroids=start)
        distance, _ = found.assign(x)
        return torch.from_numpy(found.centroids), torch.from_numpy(distance).double().sum()

    return Contender(forward, outputs=("centers", "inertia"))


def flash_kmeans(problem: ClusterProblem) -> Contender:
    if not problem.x.is_cuda:
        raise PeerMissing("flash-kmeans: Triton kernels, which need a GPU")
    try:
        from flash_kmeans import batch_kmeans_Euclid
    except ImportError as error:
        raise PeerMissing(f"flash-kmeans: {error}") from None

    def forward() -> tuple[Tensor, Tensor]:
        index, centers, *_ = batch_kmeans_Euclid(
            problem.x[None],
            len(problem.start),
            max_iters=problem.iterations,
            tol=0.0,
            init_centroids=problem.start[None],
        )
        return centers[0], (problem.x - centers[0][index[0]]).double().square().sum()

    return Contender(forward, outputs=("centers", "inertia"))


_F32 = ("float32",)
CDIST = Peer("cdist + argmin", "torch", cdist_argmin, dtypes=_F32)
BARE = Peer("bare product", "torch", bare_product, dtypes=_F32, same_work=False)
EXPANSION = Peer("addmm + argmin", "torch", expansion_argmin, dtypes=_F32)
FAISS = Peer("FAISS knn", "faiss-cpu", faiss_knn, dtypes=_F32)
ARGMIN_MIN = Peer("sklearn argmin_min", "scikit-learn", sklearn_argmin, dtypes=_F32)
ASSIGN = {"cdist": CDIST, "addmm": EXPANSION, "sklearn": ARGMIN_MIN, "faiss": FAISS}
DISTANCE = {
    "cdist": Peer("cdist squared", "torch", cdist_squared, dtypes=_F32),
    "addmm": Peer("addmm + squares", "torch", expansion_distance, dtypes=_F32),
}
SOFTMAX = {
    "cdist": Peer("cdist + softmax", "torch", cdist_softmax, dtypes=_F32),
    "addmm": Peer("addmm + softmax", "torch", literal_softmax, dtypes=_F32),
}
CROSS_ENTROPY = {
    "cdist": Peer("cdist + cross_entropy", "torch", cdist_cross_entropy, dtypes=_F32),
    "addmm": Peer("addmm + cross_entropy", "torch", literal_cross_entropy, dtypes=_F32),
    "compiled": Peer(
        "compiled addmm + cross_entropy",
        "torch",
        compiled_cross_entropy,
        dtypes=_F32,
        compiles=True,
    ),
}
MEAN = {
    "index_add": Peer("index_add_", "torch", mean_index_add, dtypes=_F32),
    "scatter_add": Peer("scatter_add_", "torch", mean_scatter_add, dtypes=_F32),
    "one_hot": Peer("one-hot product", "torch", mean_one_hot, dtypes=_F32),
    "scatter_reduce": Peer("scatter_reduce_ mean", "torch", mean_scatter_reduce, dtypes=_F32),
    "bag": Peer("sort + embedding_bag", "torch", mean_embedding_bag, dtypes=_F32),
}
KMEANS = {
    "sklearn": Peer("scikit-learn Lloyd", "scikit-learn", sklearn_kmeans, dtypes=_F32),
    "faiss": Peer("FAISS k-means", "faiss-cpu", faiss_kmeans, dtypes=_F32),
    "flash": Peer("flash-kmeans", "flash-kmeans", flash_kmeans, dtypes=_F32),
}
