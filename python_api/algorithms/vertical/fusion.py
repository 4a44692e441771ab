"""How the active party joins the parties' representations: gate, fused head, local heads.

Sizes: B rows, M parties (in the order of the config), C classes, d the width of a representation.
h (B, M, d) holds the representations, present (B, M) which of them are there; the others are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from python_api.algorithms.vertical.local_head import local_head
from python_api.algorithms.vertical.unseen import NEVER, calibrated, filled, related

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig

__all__ = ["Fusion", "Gate", "LinearHead", "PrototypeHead"]

HIDDEN = 16  # of the gate


class Gate(nn.Module):
    """Weights of the parties that are present, a softmax over them for each class.

        a[m, c] = v_m . tanh(U_m [max p_m; entropy p_m; cost_m])
        g[m, c] = exp(a[m, c]) / sum over the parties present

    v starts at 0: the gate begins even. As published it also reads h_m (`gate_reads = "all"`; width
    is d then, else 0) and adds log w_m[c] (`gate_prior`).
    """

    def __init__(self, parties: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(nn.Linear(width + 3, HIDDEN) for _ in range(parties))
        self.out = nn.Parameter(torch.zeros(parties, HIDDEN))

    def forward(self, h: Tensor, told: Tensor, present: Tensor, log_prior: Tensor) -> Tensor:
        """told (B, M, 3), log_prior (M, C) -> (B, M, C)."""
        seen = torch.cat([h, told], 2) if self.width else told
        hidden = torch.stack([layer(seen[:, m]) for m, layer in enumerate(self.layers)], 1)
        score = (torch.tanh(hidden) * self.out).sum(2, keepdim=True) + log_prior
        return masked_softmax(score, present)


def masked_softmax(score: Tensor, present: Tensor) -> Tensor:
    """Softmax over dimension 1, the parties; 0 for those that are not present."""
    score = score.masked_fill(~present[:, :, None], -math.inf)
    # a row without any party has no weights, not NaN
    return torch.softmax(score, 1).nan_to_num(0.0)


class LinearHead(nn.Module):
    """One linear layer on the gated representations and the presence bits.

        logit_c = |A| sum_{m in A} g[m, c] W_m[c] . h_m + sum_{m in A} u_m[c] + b_c

    The factor |A| (how many are present) makes an even gate the plain linear layer.
    """

    def __init__(self, parties: int, classes: int, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(parties * width)
        self.weight = nn.ParameterList(
            nn.Parameter(torch.empty(classes, width).uniform_(-bound, bound))
            for _ in range(parties)
        )
        self.present = nn.Parameter(torch.zeros(parties, classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, h: Tensor, present: Tensor, gate: Tensor) -> Tensor:
        each = torch.stack([h[:, m] @ w.T for m, w in enumerate(self.weight)], 1)
        there = present.to(h.dtype)
        total = (each * gate).sum(1) * there.sum(1, keepdim=True)
        return total + there @ self.present + self.bias

    def visiting(self, party: int) -> Tensor:
        """(C, d + 1): what the head is to a row that this party alone holds, bias last."""
        bias = self.bias + self.present[party]
        return torch.cat([self.weight[party], bias[:, None]], 1)


class PrototypeHead(nn.Module):
    """Cosines with class prototypes nu of the fused space.

    z_c = sum_m g[m, c] V_m h_m,  logit_c = cos(z_c, nu_c) / tau
    """

    def __init__(self, parties: int, classes: int, width: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        start = torch.eye(width).repeat(parties, 1, 1)
        self.project = nn.Parameter(start + 0.01 * torch.randn(parties, width, width))
        self.prototypes = nn.Parameter(torch.randn(classes, width))
        self.register_buffer("known", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("relation", torch.eye(classes))

    def joined(self, h: Tensor, gate: Tensor) -> Tensor:
        """(B, C, d)"""
        moved = torch.einsum("bmd,med->bme", h, self.project)
        return torch.einsum("bmc,bme->bce", gate, moved)

    def forward(self, h: Tensor, present: Tensor, gate: Tensor) -> Tensor:
        nu, told = self.prototypes, None
        if not bool(self.known.all()) and not self.training:
            nu = filled(nu, self.known, self.relation)
            told = related(self.known, self.relation)
        found = torch.cosine_similarity(self.joined(h, gate), nu, dim=2) / self.tau
        return found if told is None else found.masked_fill(~told, NEVER)


class Fusion(nn.Module):
    """All that the active party keeps beside its own encoder; also what `predict` loads.

    log_prior (M, C): the logarithm of each party's mixed class prior, 0 where none is used.
    known (M, C): the classes that a party's prototypes stand for.
    relation (C, C): mean cosine of class prototypes over the parties that know both classes.
    """

    def __init__(
        self, parties: Sequence[str], active: str, classes: int, width: int, keys: ProtoEvflConfig
    ) -> None:
        super().__init__()
        self.parties, self.active = tuple(parties), active
        self.place = {name: m for m, name in enumerate(self.parties)}
        self.keys, self.classes, self.width = keys, classes, width
        count = len(self.parties)
        reads = width if keys.gate_reads == "all" else 0
        self.gate = Gate(count, reads) if keys.gate else None
        self.head: LinearHead | PrototypeHead = (
            LinearHead(count, classes, width)
            if keys.head == "linear"
            else PrototypeHead(count, classes, width, keys.tau)
        )
        self.local = nn.ModuleList(local_head(keys, classes, width) for _ in range(count))
        self.register_buffer("log_prior", torch.zeros(count, classes))
        self.register_buffer("log_test", torch.zeros(classes))
        self.register_buffer("known", torch.ones(count, classes, dtype=torch.bool))
        self.register_buffer("relation", torch.eye(classes))
        self.register_buffer("votes", torch.zeros((), dtype=torch.bool))

    # ---- gate -------------------------------------------------------------------------------

    @torch.no_grad()
    def told(self, h: Tensor, present: Tensor) -> Tensor:
        """(B, M, 3): how sure each party's prototypes are: max p, entropy p, expected cost."""
        found = h.new_zeros(*h.shape[:2], 3)
        for m in range(len(self.parties)):
            at = present[:, m].nonzero()[:, 0]
            if len(at):
                found[at, m] = self.local[m].sureness(h[at, m], self.log_prior[m])
        return found

    def gates(self, h: Tensor, present: Tensor) -> Tensor:
        """(B, M, C), sums to 1 over the parties present."""
        if self.gate is None:
            even = h.new_zeros(len(h), len(self.parties), self.classes)
            return masked_softmax(even, present)
        prior = self.log_prior if self.keys.gate_prior else torch.zeros_like(self.log_prior)
        return self.gate(h, self.told(h, present), present, prior)

    # ---- decision ---------------------------------------------------------------------------

    def logits(self, h: Tensor, present: Tensor) -> Tensor:
        """(B, C) of the fused head, as trained: no prior added."""
        return self.head(h, present, self.gates(h, present))

    def log_local(self, h: Tensor, party: int) -> Tensor:
        """(B, C): log-probabilities of one party's local head from its representations (B, d).

        Without the vote a class that no party knows, nor relates to one that it knows, cannot win.
        """
        known = self.known[party]
        rule = self.keys.unseen
        if rule == "vote":
            return calibrated(self.local[party].logits(h, known), known)
        prototypes, told = None, self.known.any(0)
        if rule == "relations" and not bool(known.all()):
            prototypes = filled(self.local[party].prototypes, known, self.relation)
            told = related(known, self.relation)
        found = self.local[party].logits(h, None, prototypes)
        return torch.log_softmax(found.masked_fill(~told, NEVER), 1)

    def scores(self, h: Tensor, present: Tensor) -> Tensor:
        """(B, C), the largest is the decision: the fused head, or the vote where a class is unseen
        at the active party."""
        fused = isinstance(self.head, PrototypeHead) and self.keys.unseen != "vote"
        if not bool(self.votes) or fused:
            found = self.logits(h, present) + self.log_test
            if self.keys.decide == "fused":
                return found
            local = self._sum_of_local(h, present) / present.sum(1, keepdim=True).clamp_min(1)
            return torch.log_softmax(found, 1) + local
        return self._sum_of_local(h, present)

    def _sum_of_local(self, h: Tensor, present: Tensor) -> Tensor:
        """(B, C) sum over the parties present of their local log-probabilities."""
        total = h.new_zeros(len(h), self.classes)
        for m in range(len(self.parties)):
            total = total + present[:, m, None] * self.log_local(h[:, m], m)
        return total

    def alone(self, h: Tensor, party: int) -> Tensor:
        """(B, C): the decision where one party alone is present; h (B, M, d)."""
        present = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        present[:, party] = True
        return self.scores(h * present[:, :, None], present)
