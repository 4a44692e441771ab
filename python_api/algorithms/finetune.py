"""A party that fine-tunes: one adapted model, its private data and its private optimisers.

Algorithms subclass `FineTuneParty` or drive its methods; the rounds themselves are theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from python_api.errors import InputError
from python_api.federation.bus import Party, Payload
from python_api.federation.seeds import generator, seed_for
from python_api.models.adapted import AdaptedModel
from python_api.models.batching import Batch, Batcher
from python_api.models.build import Base
from python_api.models.metrics import classification_metrics, exact_match
from python_api.models.optimise import LocalOptimizer
from python_api.models.slots import find_slots

if TYPE_CHECKING:
    from python_api.config import PartyConfig, RunConfig
    from python_api.data.task import TaskData

__all__ = ["FineTuneParty", "metric_rows"]


class FineTuneParty(Party):
    """One party of a fine-tuning algorithm.

    Args:
        party: its resolved config.
        run: the run's config (seed, rounds, eval).
        base: its frozen base (`load_bases`).
        data: its splits; None for a party that only predicts.
        labels: class names, if there is no data.

    Attributes:
        model: the `AdaptedModel`.
        train, test, validation: `Batcher` of each split (validation may be empty).
        rows: how many rows each split has, by its name; empty without data.
    """

    def __init__(
        self,
        party: PartyConfig,
        run: RunConfig,
        base: Base,
        data: TaskData | None,
        *,
        labels: Sequence[str] = (),
    ) -> None:
        self.name = party.name
        self.config = party
        self.run = run
        self.base = base
        self.data = data
        self.labels = tuple(data.labels if data is not None else labels)
        self.kind = party.task.kind
        self.device = next(base.model.parameters()).device
        train = party.train
        self.model = AdaptedModel(
            base,
            find_slots(base.model, modules=party.modules, slots=party.slots),
            rank=party.rank,
            alpha=party.alpha,
            n_labels=len(self.labels) if self.kind == "classification" else None,
            seed=seed_for(run.seed, 0, party.name, "adapters"),
            class_weight=self._class_weight(),
            gradient_checkpointing=train.gradient_checkpointing,
            train_base=not train.adapters,
        )
        self.sizes = {
            "layers": self.model.n_layers,
            "slots": len(self.model.slots),
            "rank": self.model.rank,
        }
        self.train = self._batcher(data.train if data else ())
        self.validation = self._batcher(data.validation if data else ())
        self.test = self._batcher(data.test if data else ())
        parts = ("train", "validation", "test")
        self.rows = {part: len(getattr(data, part)) for part in parts} if data else {}
        self.optimizers: dict[str, LocalOptimizer] = {}
        self._best: dict[str, Any] | None = None

    # ---- training ---------------------------------------------------------------------------

    def check_train(self) -> None:
        """Refuses to train on nothing: every item may have been dropped as too long."""
        if not len(self.train):
            raise InputError(
                f"party.{self.name}.task.train: no item is left to train on; expected answers "
                f"that fit into max_length = {self.config.train.max_length}"
            )

    @property
    def steps_per_round(self) -> int:
        """Optimiser steps of one round."""
        train = self.config.train
        if train.steps is not None:
            return train.steps
        rows = train.batch_size * train.accumulate
        return train.epochs * -(-len(self.train) // rows)

    def macro_batches(self, round: int) -> Iterator[list[Batch]]:
        """The round's optimiser steps, each a list of up to `accumulate` micro-batches on the
        party's device. The order depends on (run seed, round, party) alone."""
        self.check_train()
        train = self.config.train
        draw = generator(self.run.seed, round, self.name, "batches")
        rows = train.batch_size * train.accumulate
        order: list[int] = []
        done = 0
        while done < self.steps_per_round:
            if not order:
                order = torch.randperm(len(self.train), generator=draw).tolist()
            take, order = order[:rows], order[rows:]
            starts = range(0, len(take), train.batch_size)
            yield [self.train.batch(take[s : s + train.batch_size]).to(self.device) for s in starts]
            done += 1

    def groups(self, *, adapters: bool = True, head: bool = True) -> list[dict[str, Any]]:
        """Parameter groups of the party's private parameters, with their learning rates."""
        groups = []
        if adapters:
            params = [p for p in self.model.adapter_parameters() if p.requires_grad]
            groups.append({"params": params, "lr": self.config.train.lr})
        if head:
            params = list(self.model.head_parameters())
            groups.append({"params": params, "lr": self.config.train.head_lr})
        return groups

    def make_optimizer(
        self, name: str, groups: Iterable[dict[str, Any]], *, start: int = 0
    ) -> LocalOptimizer:
        """AdamW over `groups` (`params`, `lr`, optionally `weight_decay`) with the party's schedule
        over the whole run; kept under `name` for checkpoints."""
        train = self.config.train
        self.optimizers[name] = LocalOptimizer(
            groups,
            schedule=train.schedule,
            warmup=train.warmup,
            total=self.run.rounds * self.steps_per_round,
            weight_decay=train.weight_decay,
            clip=train.clip,
            start=start,
        )
        return self.optimizers[name]

    @staticmethod
    def shares(macro: Sequence[Batch]) -> list[float]:
        """The weight of each micro-batch's mean loss in the mean over the macro-batch."""
        weights = [batch.weight for batch in macro]
        return [weight / max(1, sum(weights)) for weight in weights]

    # ---- measuring --------------------------------------------------------------------------

    def evaluate(self, payload: Payload) -> Payload:
        """Bus op: `{"names": ["test/accuracy", ...], "values": float64 (K,)}`.

        With `keep = "best"` test metrics are those of the best model so far by validation accuracy
        (loss decides ties), since that is the model the party would keep.
        """
        metrics: dict[str, float] = {}
        best = self.config.train.keep == "best" and len(self.validation)
        if len(self.validation):
            metrics |= self._measure("validation", self.validation)
        if best:
            rank = [metrics["validation/accuracy"], -metrics["validation/loss"]]
            if self._best is None or rank > self._best["rank"]:
                self._best = {
                    "rank": rank,
                    "adapters": self.model.adapter_state(),
                    "middle": _clone(self.model.middle),
                    "test": self._measure("test", self.test),
                }
            metrics |= self._best["test"]
        else:
            metrics |= self._measure("test", self.test)
        names = list(metrics)
        return {
            "names": names,
            "values": torch.tensor([metrics[name] for name in names], dtype=torch.float64),
        }

    def _measure(
        self, split: str, batcher: Batcher, *, limit: int | None = None
    ) -> dict[str, float]:
        limit = self.run.eval.limit if limit is None else limit
        examples = batcher.examples[: limit or None]
        if not examples:
            return {}
        if self.kind == "classification":
            logits = self._class_logits(batcher, limit=limit)
            labels = torch.tensor([example.label for example in examples])
            found = classification_metrics(logits, labels)
        else:
            found = {
                "accuracy": exact_match(self._answers(examples), [e.answer or "" for e in examples])
            }
            found |= self._token_loss(batcher, limit=limit)
        return {f"{split}/{name}": value for name, value in found.items()}

    @torch.no_grad()
    def _class_logits(self, batcher: Batcher, *, limit: int = 0) -> Tensor:
        """(N, C) float32 on the CPU, in the order of the examples."""
        count = min(limit or len(batcher), len(batcher))
        logits = torch.empty(count, len(self.labels))
        for chunk in self._chunks(batcher.lengths[:count]):
            batch = batcher.batch(chunk).to(self.device)
            logits[chunk] = self.in_eval(self.model.logits, batch).float().cpu()
        return logits

    @torch.no_grad()
    def _token_loss(self, batcher: Batcher, *, limit: int = 0) -> dict[str, float]:
        count = sum(1 for index in batcher.kept if not limit or index < limit)
        total, tokens = 0.0, 0
        for chunk in self._chunks(batcher.lengths[:count]):
            batch = batcher.batch(chunk).to(self.device)
            loss, _ = self.in_eval(self.model.loss, batch)
            total += float(loss) * batch.weight
            tokens += batch.weight
        return {"loss": total / tokens} if tokens else {}

    def _answers(self, examples: Sequence[Any]) -> list[str]:
        prompts = self._batcher(examples, decode=True)
        texts = [""] * len(examples)
        for chunk in self._chunks(prompts.lengths):
            batch = prompts.batch(chunk).to(self.device)
            rows = self.model.generate(batch, max_new_tokens=self.run.eval.max_new_tokens)
            for index, row in zip(chunk, rows, strict=True):
                texts[prompts.kept[index]] = self.base.tokenizer.decode(
                    row, skip_special_tokens=True
                )
        return texts

    def _chunks(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of like length: less padding, the same results."""
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        size = self.run.eval.batch_size
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def in_eval(self, function, *args):
        """Call `function` with the model in evaluation mode."""
        was = self.model.training
        self.model.eval()
        try:
            return function(*args)
        finally:
            self.model.train(was)

    def predict(self, rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """The rows with `prediction` and `p_<class>`, or `prediction` (the extracted answer) and
        `answer` (the whole text) beside what they held.

        Raises:
            InputError: a row without a column that training reads.
        """
        from python_api.models.metrics import extract_answer

        examples = self._examples(rows)
        if self.kind == "classification":
            probabilities = self._class_logits(self._batcher(examples)).double().softmax(1)
            return [
                {
                    **row,
                    "prediction": self.labels[int(p.argmax())],
                    **{f"p_{label}": float(v) for label, v in zip(self.labels, p, strict=True)},
                }
                for row, p in zip(rows, probabilities, strict=True)
            ]
        texts = self._answers(examples)
        return [
            {**row, "prediction": extract_answer(text), "answer": text}
            for row, text in zip(rows, texts, strict=True)
        ]

    def evaluate_rows(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics by name (`accuracy`, `loss`, ...) on rows that hold the label or the answer, all
        of them: `eval.limit` bounds what a run measures, not what a user hands over.

        Raises:
            InputError: no rows, or one without a text, a label or an answer.
        """
        from python_api.data.task import task_from_rows

        task = self.config.task
        examples = task_from_rows(rows, task, labels=self.labels)
        if not examples:
            raise InputError("no rows; expected at least one to evaluate on")
        for number, example in enumerate(examples, 1):
            if example.label is None and example.answer is None:
                column = task.answer if self.kind == "generation" else task.label
                raise InputError(f"row {number}: no value in column {column!r} to compare with")
        found = self._measure("rows", self._batcher(examples), limit=0)
        return {name.split("/", 1)[1]: value for name, value in found.items()}

    def _examples(self, rows: Sequence[dict[str, str]]) -> list[Any]:
        from python_api.data.task import Example

        task = self.config.task
        columns = task.text if self.kind == "classification" else (str(task.question),)
        examples = []
        for number, row in enumerate(rows, 1):
            if missing := [column for column in columns if column not in row]:
                raise InputError(f"row {number}: no column {missing[0]!r}; found {' '.join(row)}")
            examples.append(Example("\n".join(str(row[column]) for column in columns)))
        return examples

    # ---- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Parameters, middle, optimisers, best model: what a checkpoint needs."""
        return {
            "adapters": self.model.adapter_state(),
            "middle": _clone(self.model.middle),
            "residual": self.model.residual,
            "optimizers": {name: each.state() for name, each in self.optimizers.items()},
            "best": self._best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; optimisers must have been made under the same names."""
        self.model.load_adapter_state(state["adapters"])
        self.model.set_middle(_clone(state["middle"]), residual=bool(state["residual"]))
        for name, value in state["optimizers"].items():
            self.optimizers[name].load_state(value)
        self._best = state["best"]

    def save(self, folder: Path) -> None:
        """Write `native/`, `peft/` and, for a model built on the spot, `base/`."""
        folder = Path(folder)
        kept = None
        if self._best is not None:
            kept = self.model.adapter_state(), self.model.middle
            self.model.load_adapter_state(self._best["adapters"])
            self.model.set_middle(self._best["middle"], residual=self.model.residual)
        try:
            self.model.export(folder / "native", format="native")
            (folder / "native" / "task.json").write_text(json.dumps(self._task(), indent=1))
            if not self.model.train_base:
                self.model.export(folder / "peft", format="peft")
        finally:
            if kept is not None:
                self.model.load_adapter_state(kept[0])
                self.model.set_middle(kept[1], residual=self.model.residual)
        if self.base.path is None and not (folder / "base" / "config.json").is_file():
            self.base.save(folder / "base")

    def _task(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "labels": list(self.labels),
            "max_length": self.config.train.max_length,
            "prompt": self.base.prompt,
            "slots": self.config.slots,
        }

    # ---- private ----------------------------------------------------------------------------

    def _batcher(self, examples: Sequence[Any], *, decode: bool = False) -> Batcher:
        return Batcher(
            examples,
            self.base.tokenizer,
            max_length=self.config.train.max_length,
            kind=self.kind,
            prompt=self.base.prompt,
            labels=self.labels,
            decode=decode,
        )

    def _class_weight(self) -> Tensor | None:
        if self.config.train.class_weight != "balanced" or self.data is None:
            return None
        if self.kind != "classification":
            return None
        labels = torch.tensor([example.label for example in self.data.train])
        counts = torch.bincount(labels, minlength=len(self.labels)).clamp(min=1).float()
        return (len(labels) / (len(self.labels) * counts)).to(self.device)


def metric_rows(payload: Payload) -> list[tuple[str, str, float]]:
    """(split, metric, value) of a reply of `evaluate`."""
    names, values = payload["names"], payload["values"]
    assert isinstance(names, list) and isinstance(values, Tensor)
    rows = []
    for name, value in zip(names, values.tolist(), strict=True):
        split, metric = name.split("/", 1)
        rows.append((split, metric, float(value)))
    return rows


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
