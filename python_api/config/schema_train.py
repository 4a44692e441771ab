"""[train] and [eval]: what both settings have."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from python_api.config.table import Count, Positive, Rate, Table, Weight

__all__ = ["EvalConfig", "TrainConfig"]


class TrainConfig(Table):
    """[train]: local training; every party may override every key."""

    epochs: Positive = Field(1, description="passes over the party's data per round")
    steps: Positive | None = Field(
        None, description="optimiser steps per round, in place of epochs"
    )
    batch_size: Positive = Field(16, description="rows per forward pass")
    accumulate: Positive = Field(1, description="a step takes batch_size * accumulate rows")
    lr: Rate = Field(2e-3, description="learning rate of AdamW: A, B, T and shared tensors")
    head_lr: Rate = Field(1e-2, description="learning rate of the private head")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description='"constant", or "cosine" over the whole run'
    )
    warmup: Count = Field(0, description="steps of linear warm-up")
    weight_decay: Weight = Field(0.0, description="decay of A, B and the head")
    clip: Weight = Field(1.0, description="largest gradient norm; 0 = no clipping")
    max_length: Positive = Field(
        128, description="tokens per item (768 for generation); longer texts lose their beginning"
    )
    adapters: bool = Field(True, description="false: all weights train")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description='dtype of the frozen base: "float32" or "bfloat16"'
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    class_weight: Literal["none", "balanced"] = Field(
        "none", description='"balanced": classes weigh the same whatever their size'
    )
    keep: Literal["last", "best"] = Field(
        "last", description='"best": the model that is best on the validation split'
    )


class EvalConfig(Table):
    """[eval]: how parties are measured."""

    every: Positive = Field(1, description="rounds between evaluations; the last is always one")
    batch_size: Positive = Field(32, description="rows per forward pass")
    limit: Count = Field(0, description="items per split; 0 = all")
    max_new_tokens: Positive = Field(384, description="longest generated answer, in tokens")
