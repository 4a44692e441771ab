"""`fedkernels check` of tables by parties: columns, ids, bytes, minutes; nothing is trained."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_api.config import ignored
from python_api.notices import device_notices, notices

if TYPE_CHECKING:
    import torch
    from torch import nn

    from python_api.config import RunConfig, VerticalPartyConfig
    from python_api.data.vertical import Columns, VerticalData

__all__ = ["VerticalPartyCheck", "VerticalReport", "check_vertical", "encoder_name"]

SENDS_NOTHING = ("vfl_local", "centralised")  # in training
ALIGNED_ONLY = ("vfl_vanilla", "vfl_balanced")  # joint steps take no other rows


@dataclass(frozen=True)
class VerticalPartyCheck:
    """One party. columns: in words. own: training rows that no joint step reads. bytes_down,
    bytes_up: a round's, representations and gradients, without framing and evaluation."""

    name: str
    active: bool
    labels: bool
    columns: str
    encoder: str
    weights: int
    rows: tuple[int, int, int]
    own: int
    bytes_down: int
    bytes_up: int
    minutes: float


@dataclass(frozen=True)
class VerticalReport:
    """parties in the config's order. ids: what the tables have in common, in words."""

    parties: tuple[VerticalPartyCheck, ...]
    ids: str
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def check_vertical(config: RunConfig) -> VerticalReport:
    """Read, match and split all tables; size up the encoders; train nothing.

    Raises:
        InputError: the first thing that `run` would refuse.
    """
    data = preflight_vertical(config)
    active = next(party for party in config.vertical_parties if party.active)
    steps, lower = steps_per_round(config, data, active)
    parties = tuple(
        _party(party, config, data, active, steps, lower) for party in config.vertical_parties
    )
    counts = data.counts
    parts = ("train", "validation", "test")
    rows = {party.name: dict(zip(parts, party.rows, strict=True)) for party in parties}
    notes = list(data.notes)
    if (line := ignored(config)) is not None:
        notes.append(line)
    notes.append(
        "Ids are matched in the clear. Bytes: representations up and their gradients down, for the "
        "rows of joint steps. Minutes: steps of the encoders, timed now, without gate, heads and "
        "evaluation, so a lower bound."
    )
    return VerticalReport(
        parties,
        f"ids: {counts['common']} in common, of which {counts['test']} test and "
        f"{counts['validation']} validation; {counts['aligned']} training ids aligned",
        data.labels,
        tuple(notes),
        (*notices(config, rows=rows, slots={}), *device_notices(config)),
    )


def preflight_vertical(config: RunConfig, *, here: bool = False) -> VerticalData:
    """All tables, after the algorithm looked at the config.

    here: the run is to start on this machine: devices must be there too.
    """
    from python_api.algorithms import make
    from python_api.data.vertical import load_vertical
    from python_api.models.bases import resolve_device

    make(config)
    if here:
        for party in config.vertical_parties:
            resolve_device(party.device or config.device)
    return load_vertical(config)


def steps_per_round(
    config: RunConfig, data: VerticalData, active: VerticalPartyConfig
) -> tuple[int, int]:
    """(joint steps, steps on own rows) of a round: a pass over the active party's labelled rows.

    Algorithms without a lower level make all of their steps jointly, so that all make as many.
    """
    y = data.parties[active.name].train.y
    assert y is not None
    keys, train = config.proto_evfl, active.train
    steps = train.steps or train.epochs * math.ceil(int((y >= 0).sum()) / train.batch_size)
    cycles = max(1, math.ceil(steps / (keys.lower + keys.upper)))
    if config.algorithm in (*SENDS_NOTHING, *ALIGNED_ONLY):
        return cycles * (keys.lower + keys.upper), 0
    return cycles * keys.upper, cycles * keys.lower


def encoder_name(party: VerticalPartyConfig, columns: int | None = None) -> str:
    """`mlp 12-64-32`, or without its first number where the columns are not known."""
    model = party.model
    if model.shape is not None:
        return f"cnn {'x'.join(map(str, model.shape))}-{model.out}"
    first = () if columns is None else (columns,)
    return f"{model.kind} {'-'.join(map(str, (*first, *model.hidden, model.out)))}"


def _party(
    party: VerticalPartyConfig,
    config: RunConfig,
    data: VerticalData,
    active: VerticalPartyConfig,
    steps: int,
    lower: int,
) -> VerticalPartyCheck:
    from python_api.models.encoder import build_encoder

    own = data.parties[party.name]
    encoder = build_encoder(party.model, own.train.x.shape[1], seed=0)
    sends = not party.active and config.algorithm not in SENDS_NOTHING
    sent = steps * _joint_rows(config, data, active, party.name) if sends else 0.0
    size = round(sent * party.model.out * 4)
    batch = own.train.x[: party.train.batch_size]
    seconds = config.rounds * (steps + lower) * _step_seconds(encoder, batch)
    return VerticalPartyCheck(
        name=party.name,
        active=party.active,
        labels=own.train.y is not None,
        columns=_columns(own.columns),
        encoder=encoder_name(party, len(own.columns.names)),
        weights=sum(p.numel() for p in encoder.parameters()),
        rows=(len(own.train.ids), len(own.validation.ids), len(own.test.ids)),
        own=data.counts[f"{party.name} own"],
        bytes_down=size,
        bytes_up=size,
        minutes=seconds / 60,
    )


def _joint_rows(
    config: RunConfig, data: VerticalData, active: VerticalPartyConfig, name: str
) -> float:
    """Rows of a joint batch that party `name` holds too: the mean over batches."""
    train = data.parties[active.name].train
    assert train.y is not None
    labelled = {id for id, y in zip(train.ids, train.y.tolist(), strict=True) if y >= 0}
    others = {p: labelled.intersection(d.train.ids) for p, d in data.parties.items()}
    aligned = set().union(*(ids for p, ids in others.items() if p != active.name))
    if not aligned:
        return 0.0
    size, share = active.train.batch_size, len(aligned) / len(labelled)
    whole = share == 1 or config.algorithm in ALIGNED_ONLY
    count = size if whole else round(size * max(0.5, share))
    return min(count, len(aligned)) * len(others[name]) / len(aligned)


def _columns(columns: Columns) -> str:
    """`9 numbers, 2 categories: 14 inputs`."""
    kinds = [part["kind"] for part in columns.to_dict()["parts"]]
    words = {"number": ("number", "numbers"), "category": ("category", "categories")}
    told = [
        f"{kinds.count(kind)} {forms[kinds.count(kind) > 1]}"
        for kind, forms in words.items()
        if kind in kinds
    ]
    inputs = len(columns.names)
    return f"{', '.join(told)}: {inputs} {'inputs' if inputs > 1 else 'input'}"


def _step_seconds(encoder: nn.Module, x: torch.Tensor, seconds: float = 0.05) -> float:
    """One forward and backward pass of the encoder."""
    count, start = -1, time.perf_counter()
    while time.perf_counter() - start < seconds or count < 1:
        encoder(x).sum().backward()
        count += 1
        if count == 0:  # the first one warms up
            start = time.perf_counter()
    return (time.perf_counter() - start) / count
