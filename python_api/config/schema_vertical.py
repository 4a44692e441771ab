"""Vertical data: one table per party, about partly the same people; one party has the labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from python_api.config.schema_train import TrainConfig
from python_api.config.table import Count, Positive, Rate, Share, Table, Unit, Weight

__all__ = ["DataConfig", "EncoderConfig", "ProtoEvflConfig", "VerticalPartyConfig"]


class DataConfig(Table):
    """[data]: labels, splits, and how little the parties' tables have in common."""

    label: str | None = Field(None, description="the active party's label column")
    labels: tuple[str, ...] = Field((), description="the label space; default: the labels found")
    test: Share = Field(
        0.2, description="share of the common ids, by seed; they leave every party first"
    )
    validation: Share = Field(
        0.1, description="share of the common training ids, by seed; read for keep alone"
    )
    overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="1: the tables as they are; below 1 that share of the common training ids "
        "stays aligned, the rest is split among the parties",
    )
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        1.0,
        description="50: a party's commonest unaligned class has 50 rows for one of its rarest, "
        "in a class order of its own",
    )
    unseen: tuple[str, ...] = Field(
        (), description="classes taken out of the active party's training rows"
    )
    noise: Weight = Field(0.3, description="standard deviations of noise on the inputs in training")


class EncoderConfig(Table):
    """party.model: what turns a party's columns into the representation that it sends."""

    kind: Literal["mlp", "cnn"] = Field(
        "mlp", description='"mlp" for columns, "cnn" for the pixels of small images'
    )
    hidden: tuple[Positive, ...] = Field((64,), description="widths of the hidden layers")
    out: Positive = Field(32, description="width of the representation, the same for all parties")
    shape: tuple[Positive, Positive, Positive] | None = Field(
        None, description="channels, height, width of a cnn; their product is the columns"
    )


class VerticalPartyConfig(Table):
    """[[party]], complete: a table with an id column."""

    name: str = Field(description="[A-Za-z0-9_-]+, unique")
    active: bool = Field(False, description="true: it has the labels and predicts; one party")
    table: str = Field(description="file: .csv, .tsv, .jsonl or .parquet; or built-in data")
    id: str = Field(description="id column: rows with equal ids are about the same person")
    features: tuple[str, ...] = Field((), description="columns to read; all but id and labels")
    categorical: tuple[str, ...] = Field(
        (), description="columns of numbers that stand for categories"
    )
    label: str | None = Field(None, description="label column of this party, where it has labels")
    device: str | None = Field(None, description="this party's device")
    l_ct: Weight | None = Field(
        None, description="weight of the transport loss on this party's unaligned rows"
    )
    train: TrainConfig = TrainConfig()
    model: EncoderConfig = EncoderConfig()


class ProtoEvflConfig(Table):
    """[proto_evfl]: prototypes, priors, selection, gate; the two levels; what is shared."""

    preset: Literal["default", "literal"] = Field(
        "default", description='"literal": every key as in the reconstruction of the paper'
    )
    head: Literal["linear", "prototype"] = Field(
        "linear", description='fused head; "prototype": cosine to class prototypes'
    )
    prior: Literal["mixed", "local", "global", "none", "test"] = Field(
        "mixed",
        description='log prior of a row\'s source on the logits in training; "test": at test too',
    )
    local: Literal["prototype", "linear", "none"] = Field(
        "prototype", description="each party's own head"
    )
    select: Literal["cheapest", "class", "none"] = Field(
        "cheapest",
        description="which unaligned rows train: the cheapest to transport, over all classes or "
        'within each predicted "class"',
    )
    gate: bool = Field(True, description="weigh the parties by row; false: the plain mean")
    gate_reads: Literal["sureness", "all"] = Field(
        "sureness", description='what the gate sees of a party; "all": its representation too'
    )
    gate_prior: bool = Field(False, description="log prior of the class among the gate's scores")
    decide: Literal["fused", "joint"] = Field(
        "fused",
        description='"joint": log-probabilities of fused head plus mean of the local heads\'',
    )
    unseen: Literal["vote", "prototypes", "relations"] = Field(
        "vote", description="how a class that the active party has never seen is predicted"
    )
    share: Literal["prototypes", "relations"] = Field(
        "prototypes", description='"relations": cosines between classes alone'
    )
    gradients: Literal["exact", "noise"] = Field(
        "exact", description='what goes back to passive parties; "noise": Gaussian, see epsilon'
    )
    rows: Literal["masked", "aligned"] = Field(
        "masked",
        description="what the fused head learns from: all labelled rows, absent parties masked, or "
        "aligned rows alone",
    )
    prototypes: Literal["learned", "ema"] = Field(
        "learned", description='"ema": running means of the rows assigned to a class'
    )
    mix: Literal["arithmetic", "geometric"] = Field(
        "arithmetic", description="how local and global prior are mixed"
    )
    lam: Unit = Field(0.5, description="share of the local prior in the mixed one")
    lam_rule: Literal["constant", "ramp"] = Field(
        "constant", description='"ramp": min(0.9, round / rounds) in place of lam'
    )
    em: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="step of the prior by EM, a chunk of rows at a time"
    )
    floor: Unit = Field(0.2, description="least prior of a class, as a share of 1/C")
    tau: Rate = Field(0.1, description="temperature of the cosines")
    local_weight: Weight = Field(0.5, description="weight of the local heads' loss")
    l_ct: Weight | None = Field(
        None,
        description="weight of the transport loss; default: 1 for a party with labels, 0 without",
    )
    rho: Unit = Field(0.5, description="rows to classes, against classes to rows, in that loss")
    q0: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="share of the rows selected at first; it grows to 1"
    )
    g: Weight = Field(0.5, description='how much more of rare classes select = "class" keeps')
    soft: bool = Field(False, description="weights in place of a hard selection")
    pseudo: Weight = Field(0.0, description="weight of pseudo-labels on the cheapest half")
    guess: Literal["cheapest", "agree", "balanced"] = Field(
        "cheapest",
        description='pseudo-labels: of the cheapest half of the rows; "agree": of those where '
        'local and visiting fused head agree; "balanced": by transport to the class prior',
    )
    ema: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step of running prototypes")
    pull: Weight = Field(0.0, description="pull of fused prototypes to the fused class means")
    lower: Count = Field(1, description="steps of each party on its own rows, then ...")
    upper: Positive = Field(5, description="... steps of the fused model on joint rows; a cycle")
    withhold: Count = Field(
        5, description="a class with fewer labelled rows at a party is not shared by it"
    )
    min_replies: Count = Field(
        0, description="parties that must answer; a round goes on without the rest; 0 = all"
    )
    epsilon: Rate = Field(8.0, description='privacy of gradients = "noise" over the whole run')
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="beside epsilon")
    clip: Rate = Field(1.0, description="largest norm of one row's gradient before noise")
    adjust: bool = Field(False, description="vfl_masked, fixmatch_lite: add the prior correction")
