"""What one party's representation alone says about the class: prototypes, or a linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkernels import class_mean, conditional_transport, prototype_cross_entropy, prototype_softmax

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig

__all__ = ["LocalHead", "local_head"]


class LocalHead(nn.Module):
    """Class prototypes of one party: p(c | h) = softmax_c(cos(h, mu_c) / tau + log w_c).

    learned: the prototypes are parameters; else they follow the class means of labelled
        representations, mu <- (1 - ema) mu + ema * mean, and no gradient reaches them.
    trained: false: nothing is learnt from labels here (a control).
    """

    def __init__(
        self, classes: int, width: int, tau: float, *, learned: bool, ema: float, trained: bool
    ) -> None:
        super().__init__()
        self.tau, self.ema, self.trained = tau, ema, trained
        start = torch.randn(classes, width)
        self.learned = learned
        if learned:
            self.prototypes = nn.Parameter(start)
        else:
            self.register_buffer("prototypes", torch.zeros_like(start))

    def logits(
        self, h: Tensor, mask: Tensor | None = None, prototypes: Tensor | None = None
    ) -> Tensor:
        """(B, C): cosines over tau."""
        mu = self.prototypes if prototypes is None else prototypes
        unit = nn.functional.normalize
        found = unit(h, dim=1) @ unit(mu, dim=1).T / self.tau
        return found if mask is None else found.masked_fill(~mask, -torch.inf)

    def loss(
        self,
        h: Tensor,
        y: Tensor,
        log_prior: Tensor,
        mask: Tensor | None = None,
        *,
        guessed: bool = False,
    ) -> Tensor:
        """Mean cross-entropy over the rows with a label (y >= 0); 0 if there is none.

        mask (C,): the classes that take part. guessed: y are no labels, so no class mean moves.
        """
        if not self.learned and not guessed:
            self.follow(h.detach(), y)
        if not self.trained or not bool((y >= 0).any()):
            return h.sum() * 0
        return prototype_cross_entropy(
            h,
            self.prototypes,
            y,
            metric="cosine",
            temperature=self.tau,
            log_prior=log_prior,
            mask=mask,
            ignore_index=-1,
        )

    @torch.no_grad()
    def follow(self, h: Tensor, y: Tensor) -> None:
        """The step of the moving class means."""
        at = y >= 0
        if bool(at.any()):
            found = class_mean(
                nn.functional.normalize(h[at], dim=1),
                y[at],
                len(self.prototypes),
                previous=self.prototypes,
                momentum=1 - self.ema,
            )
            self.prototypes.copy_(found.mean)

    @torch.no_grad()
    def sureness(self, h: Tensor, log_prior: Tensor) -> Tensor:
        """(B, 3): largest probability, entropy in nats, expected transport cost."""
        p = prototype_softmax(
            h, self.prototypes, metric="cosine", temperature=self.tau, log_prior=log_prior
        ).prob
        assert p is not None
        entropy = -(p * p.clamp_min(1e-12).log()).sum(1)
        return torch.stack([p.amax(1), entropy, self.costs(h, log_prior)], 1)

    @torch.no_grad()
    def costs(self, h: Tensor, log_prior: Tensor) -> Tensor:
        """(B,): sum_c p(c | h) (1 - cos(h, mu_c))."""
        return conditional_transport(
            h,
            self.prototypes,
            q=log_prior.exp(),
            cost="cosine",
            logits="cosine",
            temperature=self.tau,
        ).row_cost

    def pack(self) -> Tensor:
        """What is sent of the head: (C, d)."""
        return self.prototypes.detach().clone()

    @torch.no_grad()
    def unpack(self, sent: Tensor) -> None:
        self.prototypes.copy_(sent)


class LinearLocalHead(LocalHead):
    """The control: a linear layer decides; moving class means stand in where costs need them."""

    def __init__(self, classes: int, width: int, tau: float, *, ema: float) -> None:
        super().__init__(classes, width, tau, learned=False, ema=ema, trained=True)
        self.layer = nn.Linear(width, classes)

    def logits(
        self, h: Tensor, mask: Tensor | None = None, prototypes: Tensor | None = None
    ) -> Tensor:
        found = self.layer(h) if prototypes is None else super().logits(h, None, prototypes)
        return found if mask is None else found.masked_fill(~mask, -torch.inf)

    def loss(
        self,
        h: Tensor,
        y: Tensor,
        log_prior: Tensor,
        mask: Tensor | None = None,
        *,
        guessed: bool = False,
    ) -> Tensor:
        if not guessed:
            self.follow(h.detach(), y)
        if not bool((y >= 0).any()):
            return h.sum() * 0
        found = self.logits(h, mask) + log_prior
        return nn.functional.cross_entropy(found, y, ignore_index=-1)

    def pack(self) -> Tensor:
        """(C, 2 d + 1): prototypes, weights, bias."""
        parts = [self.prototypes, self.layer.weight, self.layer.bias[:, None]]
        return torch.cat(parts, 1).detach()

    @torch.no_grad()
    def unpack(self, sent: Tensor) -> None:
        width = self.prototypes.shape[1]
        self.prototypes.copy_(sent[:, :width])
        self.layer.weight.copy_(sent[:, width:-1])
        self.layer.bias.copy_(sent[:, -1])


def local_head(keys: ProtoEvflConfig, classes: int, width: int) -> LocalHead:
    """The head that `local` and `prototypes` ask for."""
    if keys.local == "linear":
        return LinearLocalHead(classes, width, keys.tau, ema=keys.ema)
    return LocalHead(
        classes,
        width,
        keys.tau,
        learned=keys.prototypes == "learned" and keys.local == "prototype",
        ema=keys.ema,
        trained=keys.local == "prototype",
    )
