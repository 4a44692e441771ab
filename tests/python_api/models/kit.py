"""Tiny models of every family, built once."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch

from python_api.models.adapted import AdaptedModel
from python_api.models.batching import Batcher
from python_api.models.build import Base, build_config
from python_api.models.pretrain import _finished, _fresh
from python_api.models.slots import find_slots
from python_api.models.tokenizer import byte_tokenizer

GROUPED = {"llama", "qwen2", "mistral", "qwen3", "smollm3"}


@functools.cache
def tiny_base(kind: str) -> Base:
    extra = {"num_key_value_heads": 2} if kind in GROUPED else {}
    config, encoder = build_config(kind, hidden_size=32, layers=2, heads=4, extra=extra)
    model = _finished(_fresh(config, 0, encoder=encoder), encoder=encoder)
    return Base(model, byte_tokenizer(encoder=encoder), encoder=encoder)


def example(text, label=None, answer=None):
    return SimpleNamespace(text=text, label=label, answer=answer)


CLASSED = [example("hello world", 0), example("a longer text than the first", 1), example("x", 2)]
ASKED = [example("1+2=?", answer="3"), example("what is 12 + 30?", answer="42 is right")]


def adapted(kind: str, *, modules="all", n_labels=3, rank=4, **options) -> AdaptedModel:
    base = tiny_base(kind)
    sites = find_slots(base.model, modules=modules)
    model = AdaptedModel(base, sites, rank=rank, alpha=8, n_labels=n_labels, seed=1, **options)
    return model.eval()


def randomise(model: AdaptedModel, *, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapter_parameters():
            parameter.normal_(0, 0.1, generator=draw)


def classed_batch(model: AdaptedModel):
    batcher = Batcher(CLASSED, model.base.tokenizer, max_length=32, kind="classification")
    return batcher.batch([0, 1, 2])


def asked_batch(model: AdaptedModel, *, decode=False):
    batcher = Batcher(ASKED, model.base.tokenizer, max_length=48, kind="generation", decode=decode)
    return batcher.batch([0, 1])
