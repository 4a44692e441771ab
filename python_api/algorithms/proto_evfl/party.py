"""A passive party of Proto-EVFL: it selects, learns and counts on rows that it alone holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from python_api.algorithms.proto_evfl.learner import OwnRows, weight_of_transport
from python_api.algorithms.vertical.local_head import local_head
from python_api.algorithms.vertical.party import PassiveParty
from python_api.algorithms.vertical.unseen import relation_of
from python_api.federation.seeds import seed_for

if TYPE_CHECKING:
    from python_api.config import ProtoEvflConfig
    from python_api.federation.bus import Payload

__all__ = ["ProtoParty"]


class ProtoParty(PassiveParty):
    """Its labels, if it holds any, stay: the fused head comes to visit, its gradient returns."""

    rows_class: ClassVar[type[OwnRows]] = OwnRows

    def __init__(self, *args: Any, keys: ProtoEvflConfig, **kwargs: Any) -> None:
        self.keys = keys
        party, run, _, classes = args
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(run.seed, 0, party.name, "local head"))
            self.head = local_head(keys, classes, party.model.out)
        super().__init__(*args, **kwargs)
        self.head.to(self.device)
        self.sizes["packed"] = self.head.pack().shape[1]
        self.own_rows = self._own_rows()

    def own_modules(self) -> list[nn.Module]:
        return [self.encoder, self.head]

    def _own_rows(self) -> OwnRows:
        train = self.splits["train"]
        labels = torch.full((len(train.ids),), -1) if train.y is None else train.y
        labelled = bool((labels >= 0).any())
        l_ct = weight_of_transport(self.config.l_ct, self.keys, labelled)
        return self.rows_class(self, self.keys, train.x[self.own], labels[self.own], l_ct)

    def match(self, payload: Payload) -> Payload:
        reply = super().match(payload)
        if payload["split"] == "train":
            self.own_rows = self._own_rows()
        return reply

    def begin(self, payload: Payload) -> Payload:
        """Bus op: the local head, the global prior and the share to keep; answers how many own rows
        of each predicted class are kept, and how many there are."""
        sent, prior = payload["head"], payload["prior"]
        assert isinstance(sent, Tensor) and isinstance(prior, Tensor)
        self.head.unpack(sent.to(self.device))
        fused, share = payload.get("fused"), float(payload["keep"])  # type: ignore[arg-type]
        self.own_rows.lam = float(payload["lam"])  # type: ignore[arg-type]
        visiting = fused.to(self.device) if isinstance(fused, Tensor) else None
        self.own_rows.look(self.head, prior, share, visiting)
        return {"kept": self.own_rows.table}

    def lower(self, payload: Payload) -> Payload:
        """Bus op: one step on own rows. With `head`, the fused head as it is to a row that this
        party alone holds, its gradient goes back where this party has labels."""
        own = self.own_rows
        if not own.learns:
            return {"loss": 0.0}
        sent = payload.get("head")
        visiting = None
        if isinstance(sent, Tensor):
            # without labels here, the head has nothing to learn from this party
            visiting = sent.to(self.device).requires_grad_(own.labelled)
        self.head.train()
        loss = own.loss(self.head, visiting)
        loss.backward()
        self.optimizer.step()
        self.passes += 1
        reply: Payload = {"loss": float(loss.detach())}
        if visiting is not None and visiting.grad is not None:
            reply["grad"] = visiting.grad.cpu()
        return reply

    def share(self, payload: Payload) -> Payload:
        """Bus op: prior and number of own rows; with labels, counts and prototypes (or their
        cosines) of the classes with at least `withhold` labelled rows. The others are 0."""
        own = self.own_rows
        reply: Payload = {"prior": own.prior, "own": len(own.x)}
        if not own.labelled:
            return reply
        counts = torch.bincount(own.y[own.y >= 0], minlength=self.classes).float()
        enough = counts >= self.keys.withhold
        reply["counts"] = counts * enough
        reply["withheld"] = int((~enough & (counts > 0)).sum())
        if self.keys.share == "relations":
            reply["relations"] = relation_of(self.head.prototypes.detach().cpu(), enough)
        else:
            reply["prototypes"] = self.head.pack().cpu() * enough[:, None]
        return reply
