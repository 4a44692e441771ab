"""A party of H2Tune: the ops of the bus, and the two phases of local training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from python_api.algorithms.finetune import FineTuneParty
from python_api.algorithms.h2tune.losses import (
    anchor,
    logit_term,
    norm_literal,
    norm_small,
)
from python_api.algorithms.h2tune.middle import PartyMiddle
from python_api.algorithms.h2tune.optimise import SharedOptimizer
from python_api.errors import InputError
from python_api.federation.seeds import generator, seed_for

if TYPE_CHECKING:
    from python_api.config import PartyConfig, RunConfig
    from python_api.federation.bus import Payload
    from python_api.models.batching import Batch

__all__ = ["H2TuneParty", "check_alternation"]


def check_alternation(party: PartyConfig, run: RunConfig, rows: int) -> None:
    """Refuse `alternate = "epoch"` where a round has one macro-batch, too few for two phases.

    rows: of the party's training split.

    Raises:
        InputError: names the party, and what to change.
    """
    train = party.train
    at_once = train.batch_size * train.accumulate
    steps = train.steps or train.epochs * -(-rows // at_once)
    if run.h2tune.alternate == "epoch" and run.rounds > 1 and steps == 1:
        raise InputError(
            f'party.{party.name}: h2tune.alternate = "epoch" splits the macro-batches of a round '
            'between two phases, and a round has 1; expected more steps or epochs, or "step"'
        )


class H2TuneParty(FineTuneParty):
    """A `FineTuneParty` whose middle comes from the server.

    Attributes:
        middle: the party's half of the shared tensor; None before the first download.
        progress: called as `progress(party=, round=, step=, steps=, loss=)` after every step.
    """

    middle: PartyMiddle | None = None
    shared_optimizer: SharedOptimizer | None = None
    progress: Callable[..., None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = self.run.h2tune
        self.frozen = self.settings.basis in ("svd", "rotated")
        if self.frozen:
            turn = seed_for(self.run.seed, 0, self.name, "rotation")
            rotated = self.settings.basis == "rotated"
            self.model.set_basis_svd(rotated=turn if rotated else None)
        groups = self.groups()
        self.private = [p for group in groups for p in group["params"]]
        self.private_optimizer = self.make_optimizer("private", groups)
        self.done = 0  # macro-batches since the start of the run: the place in the schedule

    def check_train(self) -> None:
        super().check_train()
        check_alternation(self.config, self.run, len(self.train))

    # ---- ops --------------------------------------------------------------------------------

    def describe(self, payload: Payload) -> Payload:
        """What the server must know once: slots; base hash and row count only where used."""
        told: Payload = {"slots": list(self.model.slots)}
        if self.frozen:
            told["base"] = self.base.hash
        if self.settings.weight == "samples":
            told["samples"] = len(self.train)
        return told

    def download(self, payload: Payload) -> Payload:
        """Take G: DeltaM and the shared optimiser start anew, the model runs with its T."""
        shared = payload["shared"]
        assert isinstance(shared, Tensor)
        if self.middle is None:
            self._make_middle(shared)
        assert self.middle is not None
        self._set(self.middle.receive(shared.to(self.device)))
        self.shared_optimizer = SharedOptimizer(
            self.middle,
            self.config.train,
            total=self.run.rounds * self.steps_per_round,
            start=self.done,
        )
        return {}

    def train_locally(self, payload: Payload) -> Payload:
        """One round of local training. Replies with the mean task loss and the number of passes."""
        round = int(payload["round"])  # type: ignore[arg-type]
        self.model.train()
        how = "joint" if round == 1 else self.settings.alternate
        steps, losses, passes = self.steps_per_round, [], 0
        before: dict[str, Tensor] | None = None
        for number, macro in enumerate(self.macro_batches(round), 1):
            if how == "joint":
                loss, _ = self._joint(macro)
                passes += 1
            elif how == "step":
                _, logits = self._phase1(macro)
                loss = self._phase2(macro, logits)
                passes += 2
            elif number <= (steps + 1) // 2:  # the larger half: the middle is what is shared
                loss, _ = self._phase1(macro)
                passes += 1
            else:
                before = before or self.model.adapter_state()
                loss = self._phase2(macro, self._logits_of(before, macro))
                passes += 1
            self.done += 1
            losses.append(loss)
            if self.progress is not None:
                self.progress(party=self.name, round=round, step=number, steps=steps, loss=loss)
        assert self.middle is not None
        self._set(self.middle.close_round())
        return {"loss": sum(losses) / max(1, len(losses)), "passes": passes}

    def upload(self, payload: Payload) -> Payload:
        """G_k, P and the bits of Omega: all that leaves."""
        assert self.middle is not None
        sent = self.middle.upload(rule=self.settings.upload, ridge=self.settings.ridge)
        return {name: value.cpu() for name, value in sent.items()}

    # ---- phases -----------------------------------------------------------------------------

    def _joint(self, macro: Sequence[Batch]) -> tuple[float, list[Tensor]]:
        """Everything moves on one backward pass: warm-up, and `alternate = "joint"`."""
        self._hold_private(False)
        loss, logits = self._backward_through_middle(macro)
        self._step(self.shared_optimizer)
        self._step(self.private_optimizer)
        return loss, logits

    def _phase1(self, macro: Sequence[Batch]) -> tuple[float, list[Tensor]]:
        """DeltaM, Theta and S move; A, B and the head ask for no gradient."""
        self._hold_private(True)
        loss, logits = self._backward_through_middle(macro)
        self._step(self.shared_optimizer)
        return loss, logits

    def _phase2(self, macro: Sequence[Batch], phase1: Sequence[Tensor]) -> float:
        """A, B and the head move; the middle is a constant."""
        assert self.middle is not None
        self._hold_private(False)
        with torch.no_grad():
            self._set(self.middle.gather())
        total = 0.0
        for share, batch, old in zip(self.shares(macro), macro, phase1, strict=True):
            loss, logits = self.model.loss(batch)
            term = self.settings.logit_weight * logit_term(logits, old)
            if loss.requires_grad:  # a frozen basis and no head: nothing is private
                (share * (loss + term)).backward()
            total += share * float(loss.detach())
        self._step(self.private_optimizer)
        return total

    def _backward_through_middle(self, macro: Sequence[Batch]) -> tuple[float, list[Tensor]]:
        """Task loss of all micro-batches and the terms on the middle, in one selection.

        The model sees a leaf in place of T; the micro-batches add up its gradient, which then goes
        through the gather, the relation and the penalties once.
        """
        assert self.middle is not None
        T = self.middle.gather()
        leaf = T.detach().requires_grad_()
        self._set(leaf)
        total, logits = 0.0, []
        for share, batch in zip(self.shares(macro), macro, strict=True):
            loss, z = self.model.loss(batch)
            (share * loss).backward()
            total += share * float(loss.detach())
            logits.append(z.detach())
        assert leaf.grad is not None
        torch.autograd.backward([T, self._terms(T)], [leaf.grad, None])
        return total, logits

    def _terms(self, T: Tensor) -> Tensor:
        middle, settings = self.middle, self.settings
        assert middle is not None
        if settings.norm == "literal":
            terms = norm_literal(middle.scores, T, middle.relation())
        else:
            terms = settings.norm_weight * norm_small(T)
        if middle.has_previous:
            old = middle.previous_T, middle.previous_index
            change = anchor(T, middle.index, *old, middle_rank=middle.middle_rank)
            terms = terms + settings.anchor_weight * change
        return terms

    def _logits_of(self, adapters: dict[str, Tensor], macro: Sequence[Batch]) -> list[Tensor]:
        """The logits that the model has with other private parameters, without a gradient."""
        assert self.middle is not None
        now = self.model.adapter_state()
        self.model.load_adapter_state(adapters)
        with torch.no_grad():
            self._set(self.middle.gather())
            logits = [self.model.logits(batch) for batch in macro]
        self.model.load_adapter_state(now)
        return logits

    def _step(self, optimizer: Any) -> None:
        optimizer.steps = self.done
        optimizer.step()

    def _set(self, T: Tensor) -> None:
        self.model.set_middle(T, residual=not self.frozen)

    def _hold_private(self, hold: bool) -> None:
        for parameter in self.private:
            parameter.requires_grad_(not hold)

    # ---- state ------------------------------------------------------------------------------

    def _make_middle(self, shared: Tensor) -> None:
        self.middle = PartyMiddle(
            shared,
            layers=self.model.n_layers,
            rank=self.model.rank,
            relation=self.settings.relation,
            select=self.settings.select,
            generator=generator(self.run.seed, 0, self.name, "middle"),
        ).to(self.device)

    def state(self) -> dict[str, object]:
        """The party's private parameters and its half of the shared tensor.

        The shared optimiser is not kept: a round begins with a download, which empties it.
        """
        middle = None if self.middle is None else self.middle.state_dict()
        return {**super().state(), "h2tune": middle, "done": self.done}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.done = int(state["done"])
        if state["h2tune"] is not None:
            if self.middle is None:
                self._make_middle(state["h2tune"]["shared"])
            assert self.middle is not None
            self.middle.load_state_dict(state["h2tune"])
