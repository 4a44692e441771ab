"""Texts to padded tensors: tokenised once, cut by one rule, batched by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.data.task import Example

__all__ = ["Batch", "Batcher"]


@dataclass(frozen=True)
class Batch:
    """N padded rows of at most S tokens.

    Args:
        input_ids: ``(N, S)`` int64.
        attention_mask: ``(N, S)`` int64, 1 where a token is real.
        labels: ``(N,)`` int64 class indices, or None for generation.
        response_mask: ``(N, S)`` bool, True where a token belongs to the answer (its end mark
            included), or None for classification.
        left: the padding stands on the left (for decoding).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    response_mask: Tensor | None = None
    left: bool = False

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def targets(self) -> Tensor:
        """What ``AdaptedModel.logits`` is compared with: ``(N,)`` classes or ``(M,)`` tokens."""
        if self.response_mask is None:
            assert self.labels is not None
            return self.labels
        return self.input_ids[:, 1:][self.response_mask[:, 1:]]

    @property
    def weight(self) -> int:
        """How many terms the mean loss of this batch runs over: rows, or response tokens."""
        return len(self) if self.response_mask is None else int(self.response_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        names = ("input_ids", "attention_mask", "labels", "response_mask")
        moved = {n: t.to(device) for n in names if (t := getattr(self, n)) is not None}
        return replace(self, **moved)


class Batcher:
    """Tokenises the examples of one split once and hands out padded batches by index.

    An item that is longer than ``max_length`` loses the beginning of its text or question, never of
    its answer; an item whose answer alone does not fit is dropped. ``cut`` and ``dropped`` count
    both; ``kept`` holds the indices (into ``examples``) of the items that are left.

    Args:
        examples: the split's examples.
        tokenizer: a transformers tokenizer with a pad token.
        max_length: tokens per item.
        kind: ``"classification"`` or ``"generation"``.
        prompt: ``"auto"`` (the tokenizer's chat template if there is one, else ``{question}`` and a
            line break) or a text that holds ``{question}``.
        labels: the class names (used only to check label indices).
        decode: keep only the prompts, padded on the left, for generation of answers.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer,
        *,
        max_length: int,
        kind: str,
        prompt: str = "auto",
        labels: Sequence[str] = (),
        decode: bool = False,
    ) -> None:
        if kind not in ("classification", "generation"):
            raise InputError(f"task.kind: {kind!r}; expected classification or generation")
        if prompt != "auto" and "{question}" not in prompt:
            raise InputError(f"model.prompt: {prompt!r} holds no {{question}}")
        self.examples = examples
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.kind = kind
        self.prompt = prompt
        self.decode = decode
        self.n_labels = len(labels)
        self.cut = 0
        self.dropped = 0
        self.kept: list[int] = []
        self._ids: list[list[int]] = []
        self._answers: list[int] = []  # length of each answer, in tokens
        if kind == "classification":
            self._classification()
        else:
            self._generation()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each kept item."""
        return [len(ids) for ids in self._ids]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The kept items at ``indices`` as one padded batch."""
        rows = [self._ids[i] for i in indices]
        width = max((len(row) for row in rows), default=1) or 1
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), width), pad, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for n, row in enumerate(rows):
            where = slice(width - len(row), width) if self.decode else slice(0, len(row))
            ids[n, where] = torch.tensor(row, dtype=torch.int64)
            mask[n, where] = 1
        if self.kind == "classification":
            found = [self.examples[self.kept[i]].label for i in indices]
            has = all(label is not None for label in found)
            return Batch(ids, mask, torch.tensor(found, dtype=torch.int64) if has else None)
        if self.decode:
            return Batch(ids, mask, left=True)
        response = torch.zeros((len(rows), width), dtype=torch.bool)
        for n, i in enumerate(indices):
            response[n, len(rows[n]) - self._answers[i] : len(rows[n])] = True
        return Batch(ids, mask, response_mask=response)

    def _classification(self) -> None:
        texts = [example.text for example in self.examples]
        if not texts:
            return
        for n, ids in enumerate(self._encode(texts, special=True)):
            if len(ids) > self.max_length:
                self.cut += 1
                ids = self._encode_cut(texts[n])
            # A text without a token would leave nothing to pool.
            self._ids.append(ids or [self.tokenizer.pad_token_id])
            self.kept.append(n)

    def _generation(self) -> None:
        render = self._renderer()
        start = len(self._start())
        for n, example in enumerate(self.examples):
            answer: list[int] = []
            if not self.decode:
                answer = self._encode([example.answer or ""])[0] + [self._end()]
            room = self.max_length - len(answer)
            if room < start:
                self.dropped += 1
                continue
            question = self._encode([example.text])[0]
            prompt = render(question)
            if len(prompt) > room:
                self.cut += 1
                keep = len(question)
                while len(prompt) > room and keep:
                    keep = max(0, keep - (len(prompt) - room))
                    prompt = render(question[len(question) - keep :])
                if len(prompt) > room:  # what stands around the question gives way too
                    prompt = prompt[:start] + prompt[len(prompt) - room + start :]
            self._ids.append(prompt + answer)
            self._answers.append(len(answer))
            self.kept.append(n)

    def _renderer(self) -> Callable[[list[int]], list[int]]:
        """Question tokens -> prompt tokens."""
        tokenizer = self.tokenizer
        if self.prompt == "auto" and getattr(tokenizer, "chat_template", None):

            def chat(question: list[int]) -> list[int]:
                text = tokenizer.apply_chat_template(
                    [{"role": "user", "content": tokenizer.decode(question)}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
                return self._encode([text])[0]

            return chat
        prompt = "{question}\n" if self.prompt == "auto" else self.prompt
        before, _, after = prompt.partition("{question}")
        head = self._start() + (self._encode([before])[0] if before else [])
        tail = self._encode([after])[0] if after else []
        return lambda question: head + question + tail

    def _encode(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]

    def _encode_cut(self, text: str) -> list[int]:
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left"
        try:
            return self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        finally:
            self.tokenizer.truncation_side = side

    def _start(self) -> list[int]:
        """The special tokens that this tokenizer puts before a text."""
        plain = self._encode(["a"])[0]
        whole = self._encode(["a"], special=True)[0]
        for at in range(len(whole) - len(plain) + 1):
            if whole[at : at + len(plain)] == plain:
                return whole[:at]
        return []

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError("model: its tokenizer has no end-of-text token; generation needs one")
        return end
