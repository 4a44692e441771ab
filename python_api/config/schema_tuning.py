"""Fine-tuning: a model and a task per party, matrices that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from python_api.config.schema_train import TrainConfig
from python_api.config.table import Count, Positive, Rate, Share, Table, Weight

__all__ = ["SLOTS", "H2TuneConfig", "ModelConfig", "PartyConfig", "PretrainConfig", "TaskConfig"]

SLOTS = ("q", "k", "v", "o", "gate", "up", "down")


class H2TuneConfig(Table):
    """[h2tune]: what the parties share, and how it is chosen and averaged."""

    middle_rank: Positive = Field(
        16, description="R: every shared middle matrix is R x R; no party's rank may exceed it"
    )
    basis: Literal["trained", "svd", "rotated"] = Field(
        "trained",
        description='"trained": A and B private and trained, as published; "svd": A and B frozen '
        "to the base's own singular vectors, T shared among parties on one base",
    )
    share: Literal[True, False, "shuffled"] = Field(
        True, description='false: own G comes back; "shuffled": a permuted one (controls)'
    )
    relation: Literal["depth", "free", "last"] = Field(
        "depth", description="how a party's layers relate to the server's"
    )
    select: Literal["round", "every_step", "block"] = Field(
        "round", description="when a party chooses its rank^2 entries of each middle matrix"
    )
    norm: Literal["small", "literal"] = Field("small", description="penalty on T")
    alternate: Literal["step", "epoch", "joint"] = Field(
        "step", description="how the shared and the private phase take turns"
    )
    upload: Literal["ridge", "transpose"] = Field(
        "ridge", description="how a party's change is written back onto the server's layers"
    )
    aggregate: Literal["counts", "mean"] = Field(
        "counts", description='"counts": by who trained each entry; "mean": the plain average'
    )
    weight: Literal["uniform", "samples"] = Field(
        "uniform", description='weights of the parties: equal, or by "samples"'
    )
    min_replies: Count = Field(
        0, description="parties that must answer; a round goes on without the rest; 0 = all"
    )
    norm_weight: Weight = Field(1e-3, description="weight of the penalty on T")
    anchor_weight: Weight = Field(1.0, description="weight of the anchor to the last middle")
    logit_weight: Weight = Field(1.0, description="weight of the term between the phases' logits")
    ridge: Weight = Field(1e-2, description="mu = ridge * tr(P^T P) / L_k in the upload")
    p_min: Rate = Field(
        1e-2, description="floor of the counts, as a share of the smallest party weight"
    )


class PretrainConfig(Table):
    """model.pretrain: language modelling that stands for the foundation model of a user."""

    text: str | None = Field(
        None, description='"own" (training texts, no labels), "builtin", "none", or a file'
    )
    steps: Count = Field(300, description="optimiser steps, cached by content")


class ModelConfig(Table):
    """party.model: a transformers checkpoint, or a small model built on the spot."""

    kind: str | None = Field("llama", description="model family of transformers")
    path: str | None = Field(None, description="a local checkpoint folder or a Hub name instead")
    hidden_size: Positive = Field(64, description="width")
    layers: Positive = Field(2, description="depth")
    heads: Positive = Field(4, description="attention heads; must divide hidden_size")
    config: dict[str, object] = Field(
        default_factory=dict, description="further keys for the transformers config"
    )
    pretrain: PretrainConfig = Field(
        default_factory=PretrainConfig, description="language modelling before the first round"
    )
    prompt: str = Field("auto", description='"auto", or a text that holds {question}')
    shared: str | None = Field(None, description="the [models] name that it came from")


class TaskConfig(Table):
    """party.task: the party's private data."""

    kind: Literal["classification", "generation"] = Field(
        "classification", description='"classification" or "generation"'
    )
    data: str | None = Field(None, description='built-in data: "builtin:sentiment", topic, intent')
    train: str | None = Field(None, description="file: .jsonl, .csv, .tsv or .parquet")
    test: str | Share = Field(0.2, description="file, or share of the rows, by seed, stratified")
    validation: str | Share = Field(0.1, description="file, or share of the training rows")
    columns: tuple[str, ...] | None = Field(None, description="names, for a file without header")
    text: tuple[str, ...] = Field((), description="text column, or a list joined by line breaks")
    label: str | None = Field(None, description="label column")
    question: str | None = Field(None, description="question column (generation)")
    answer: str | None = Field(None, description="answer column (generation)")


class PartyConfig(Table):
    """[[party]], complete: its own keys over [defaults] over [train] over what is built in."""

    name: str = Field(description="[A-Za-z0-9_-]+, unique")
    rank: Positive = Field(8, description="rank of the adapters")
    alpha: Rate = Field(16.0, description="the adapters' output is scaled by alpha / rank")
    modules: Literal["all"] | tuple[str, ...] = Field(
        "all", description='"all", or a list of slots: q k v o gate up down'
    )
    slots: dict[str, str] | None = Field(
        None, description="layer names below a transformer layer, for a family not listed"
    )
    device: str | None = Field(None, description="this party's device")
    train: TrainConfig = TrainConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
