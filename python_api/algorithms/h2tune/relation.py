"""Layers of a party against layers of the shared tensor: the relation matrix P and what it does.

`P (L*, L_k)` says which of the `L*` shared layers a party's layer `l` reads. Notation and equation
numbers (H3), (H4) are those of docs/algorithms.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "Relation",
    "depth_relation",
    "download",
    "last_relation",
    "upload_ridge",
    "upload_transpose",
]


def depth_relation(server_layers: int, layers: int) -> Tensor:
    """Start of P: layers of equal relative depth belong together.

    `P[j, l] ~ exp(-((j + 1/2)/L* - (l + 1/2)/L_k)^2 / (2 sigma^2))`, `sigma = 0.5 / L*`, columns
    normalised to 1. Returns float32 `(L*, L_k)`.

    >>> depth_relation(3, 2).sum(0)
    tensor([1.0000, 1.0000])
    """
    j = (torch.arange(server_layers, dtype=torch.float64) + 0.5) / server_layers
    l = (torch.arange(layers, dtype=torch.float64) + 0.5) / layers
    sigma = 0.5 / server_layers
    logits = -((j[:, None] - l[None, :]) ** 2) / (2 * sigma**2)
    return torch.softmax(logits, dim=0).float()


def last_relation(server_layers: int, layers: int) -> Tensor:
    """Layers aligned from the top: the party's last reads the last shared one, and so on down.

    >>> last_relation(3, 2)
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.]])
    """
    relation = torch.zeros(server_layers, layers)
    rows = torch.arange(layers) + server_layers - layers
    relation[rows, torch.arange(layers)] = 1.0
    return relation


class Relation(nn.Module):
    """The party's P: `forward()` returns it, `(L*, L_k)` float32, with a gradient if it is trained.

    kind "depth": `P = softmax_j(Theta)`, started at `depth_relation`; columns sum to 1 throughout.
    kind "free": `P = Theta`, Kaiming-uniform in +-1/sqrt(L_k), as published (H8); may be negative.
    kind "last": `last_relation`, fixed.
    """

    theta: nn.Parameter | None

    def __init__(
        self,
        kind: str,
        server_layers: int,
        layers: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers > server_layers:
            raise ValueError(
                f"layers {layers} above the {server_layers} layers of the shared tensor"
            )
        self.kind = kind
        self.theta = None
        if kind == "depth":
            self.theta = nn.Parameter(depth_relation(server_layers, layers).clamp_min(1e-30).log())
        elif kind == "free":
            bound = 1 / math.sqrt(layers)
            start = torch.empty(server_layers, layers).uniform_(-bound, bound, generator=generator)
            self.theta = nn.Parameter(start)
        elif kind == "last":
            self.register_buffer("fixed", last_relation(server_layers, layers))
        else:
            raise ValueError(f"relation {kind!r} is not known; expected depth, free or last")

    def forward(self) -> Tensor:
        if self.theta is None:
            return self.get_buffer("fixed")
        return torch.softmax(self.theta, dim=0) if self.kind == "depth" else self.theta


def download(relation: Tensor, shared: Tensor) -> Tensor:
    """(H3): `M_k[l, m] = sum_j P[j, l] G[j, m]`; `(L*, L_k), (L*, S, R, R) -> (L_k, S, R, R)`."""
    return (relation.T @ shared.flatten(1)).view(relation.shape[1], *shared.shape[1:])


def upload_ridge(shared: Tensor, relation: Tensor, delta: Tensor, *, ridge: float = 1e-2) -> Tensor:
    """`G_k = G + U DeltaM`, `U = P (P^T P + mu I)^-1`, `mu = ridge * tr(P^T P) / L_k`.

    The smallest change of G that makes `P^T G_k` (nearly, for mu > 0) the trained middle. An
    untouched middle (`DeltaM = 0`) gives back G bit for bit; `P = I, ridge = 0` is plain FedAvg's
    upload. shared `(L*, S, R, R)`, delta `(L_k, S, R, R)` -> `(L*, S, R, R)`. U is found in
    float64: P^T P is poorly conditioned where two layers of a party read the same shared layer.
    """
    p = relation.double()
    gram = p.T @ p
    mu = ridge * gram.diagonal().mean()
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    u = torch.linalg.solve(gram + mu * eye, p.T).T.to(delta.dtype)
    return shared + (u @ delta.flatten(1)).view_as(shared)


def upload_transpose(relation: Tensor, middle: Tensor) -> Tensor:
    """(H4), the published form: `G_k[j, m] = sum_l P[j, l] M[l, m]`."""
    return (relation @ middle.flatten(1)).view(relation.shape[0], *middle.shape[1:])
