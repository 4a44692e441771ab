"""`fedkernels check`: what can be found wrong, and what a run will cost, without training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from python_api.config import ignored
from python_api.errors import InputError
from python_api.notices import device_notices, notices

if TYPE_CHECKING:
    from python_api.check_vertical import VerticalReport
    from python_api.config import PartyConfig, RunConfig
    from python_api.data.task import TaskData
    from python_api.models.estimate import Estimate

__all__ = ["BASIS", "CheckReport", "PartyCheck", "check", "check_tuning", "model_name", "preflight"]

BASIS = {
    "trained": (
        'basis "trained": each party trains its own A and B, as published. Nothing fixes what an '
        "entry of the shared tensor means to a party; no transfer between parties was seen in this "
        "form. Compare with h2tune.share = false."
    ),
    "svd": (
        'basis "svd": A and B are frozen to the singular vectors of the base\'s own weights; T is '
        "shared among parties with the same frozen base, to all of whom an entry means the same."
    ),
    "rotated": (
        'basis "rotated": the control of "svd"; each party\'s frozen basis is turned by a private '
        "orthogonal matrix, so that an entry means something else to each."
    ),
}


@dataclass(frozen=True)
class PartyCheck:
    """One party. bytes_down, bytes_up: a round's, without framing. minutes: of local training."""

    name: str
    model: str
    rank: int
    estimate: Estimate
    rows: tuple[int, int, int]
    labels: tuple[str, ...]
    cut: float
    steps: int
    bytes_down: int
    bytes_up: int
    minutes: float


@dataclass(frozen=True)
class CheckReport:
    """parties in the config's order; notes: what to know; warnings: what `run` refuses
    here, or does and nobody would want."""

    parties: tuple[PartyCheck, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def check(config: RunConfig) -> CheckReport | VerticalReport:
    """`check_tuning` or `check_vertical`, by the setting of the config.

    Raises:
        InputError: the first thing that `run` would refuse.
    """
    if config.setting == "vertical":
        from python_api.check_vertical import check_vertical

        return check_vertical(config)
    return check_tuning(config)


def check_tuning(config: RunConfig) -> CheckReport:
    """Read all data, size up all models, and time one training-sized product; train nothing.

    Of a checkpoint only `config.json` is read. A missing device is a warning, not an error.

    Raises:
        InputError: the first thing that `run` would refuse.
    """
    from python_api.models.estimate import estimate, round_bytes

    data = _preflight(config, here=False)
    lengths = {p.name: _lengths(p, data[p.name]) for p in config.tuning_parties}
    estimates: dict[str, Estimate] = {}
    for party in config.tuning_parties:
        longest = max(lengths[party.name], default=1)
        labels = data[party.name].labels
        try:
            made = estimate(party, config, n_labels=len(labels) or None, length=longest)
        except ValueError as error:  # transformers refuses some sizes with one of its own
            raise InputError(f"party.{party.name}: {error}") from error
        if made.encoder and party.task.kind == "generation":
            raise InputError(
                f"party.{party.name}.task.kind: {party.model.kind or party.model.path} is an "
                "encoder and cannot generate; expected classification"
            )
        estimates[party.name] = made
    speed = _speed()
    sent = round_bytes(estimates, config)
    parties = tuple(
        _party(p, config, data[p.name], lengths[p.name], estimates[p.name], sent[p.name], speed)
        for p in config.tuning_parties
    )
    parts = ("train", "validation", "test")
    told = notices(
        config,
        rows={party.name: dict(zip(parts, party.rows, strict=True)) for party in parties},
        slots={name: made.slots for name, made in estimates.items()},
    )
    return CheckReport(parties, _notes(config), (*told, *_warnings(config, estimates)))


def preflight(config: RunConfig, *, here: bool = False) -> None:
    """Look at the algorithm, all data and `config.json`; train nothing.

    here: the run is to start on this machine: devices and weights must be there too.

    Raises:
        InputError: what the algorithm refuses, bad data, or a path that is no checkpoint.
    """
    if config.setting == "vertical":
        from python_api.check_vertical import preflight_vertical

        preflight_vertical(config, here=here)
    else:
        _preflight(config, here=here)


def _preflight(config: RunConfig, *, here: bool) -> dict[str, TaskData]:
    """Every party's data."""
    from python_api.algorithms import make
    from python_api.algorithms.h2tune.party import check_alternation
    from python_api.data.task import load_task
    from python_api.models.bases import resolve_device
    from python_api.models.build import model_config
    from python_api.models.disk import look_for_weights, read_config

    make(config)
    if here:
        for device in (p.device or config.device for p in config.tuning_parties):
            resolve_device(device)
    data = {
        p.name: load_task(p.task, seed=config.seed, party=p.name) for p in config.tuning_parties
    }
    for party in config.tuning_parties:
        if party.model.path is not None:
            try:
                read_config(party.model.path)
                if here:
                    look_for_weights(party.model.path)
            except InputError as error:
                raise InputError(f"party.{party.name}: {error}") from error
        elif party.model.config:
            try:
                model_config(party.model)
            except InputError as error:
                raise InputError(f"party.{party.name}: {error}") from error
        if config.algorithm == "h2tune":
            check_alternation(party, config, len(data[party.name].train))
    return data


def _party(
    party: PartyConfig,
    config: RunConfig,
    data: TaskData,
    lengths: list[int],
    made: Estimate,
    sent: tuple[int, int],
    speed: float,
) -> PartyCheck:
    train = party.train
    rows = train.batch_size * train.accumulate
    steps = train.steps or train.epochs * -(-len(data.train) // rows)
    from python_api.algorithms.baselines.plain import total_sweeps

    passes = steps * total_sweeps(config)
    tokens = sum(min(n, train.max_length) for n in lengths) / max(1, len(lengths)) * rows
    # forward 2, backward 4 operations per weight and token; the frozen base needs no dW: 4 in all
    seconds = passes * tokens * 4 * made.parameters / speed
    return PartyCheck(
        name=party.name,
        model=model_name(party),
        rank=party.rank,
        estimate=made,
        rows=(len(data.train), len(data.validation), len(data.test)),
        labels=data.labels,
        cut=sum(n > train.max_length for n in lengths) / max(1, len(lengths)),
        steps=steps,
        bytes_down=sent[0],
        bytes_up=sent[1],
        minutes=seconds / 60,
    )


def model_name(party: PartyConfig) -> str:
    """`llama 64x2`, or the path."""
    model = party.model
    if model.path is not None:
        return Path(model.path).name
    return f"{model.kind} {model.hidden_size}x{model.layers}"


def _lengths(party: PartyConfig, data: TaskData) -> list[int]:
    """Tokens of every item of all splits, one end mark included.

    Models built on the spot count bytes. For a checkpoint bytes are an upper bound for every
    tokenizer that falls back on bytes; its own tokenizer is not loaded here.
    """
    items = (*data.train, *data.validation, *data.test)
    return [len((f"{e.text}\n{e.answer}" if e.answer else e.text).encode()) + 1 for e in items]


def _speed(seconds: float = 0.2) -> float:
    """float32 operations per second of a product as thin as those of small models."""
    import torch

    a, b = torch.randn(512, 128), torch.randn(128, 128)
    a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return count * 2 * 512 * 128 * 128 / (time.perf_counter() - start)


def _notes(config: RunConfig) -> tuple[str, ...]:
    notes = []
    if config.algorithm == "h2tune":
        notes.append(BASIS[config.h2tune.basis])
    elif (line := ignored(config)) is not None:
        notes.append(line)
    if any(p.model.path for p in config.tuning_parties):
        notes.append("Lengths of parties with model.path are in bytes: an upper bound of tokens.")
    notes.append(
        "Memory: frozen base, values, gradients and AdamW moments of what trains, and what one "
        "training step keeps; without Python and libraries. Minutes: operations of local training "
        "at the speed of one thin product timed now, so a lower bound."
    )
    return tuple(notes)


def _warnings(config: RunConfig, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
    found = list(device_notices(config))
    for party in config.tuning_parties:
        context = estimates[party.name].context
        if party.model.path is not None:
            folder = Path(party.model.path)
            if folder.is_dir() and not any(folder.glob("*.safetensors")):
                found.append(
                    f"party.{party.name}: {folder} holds no *.safetensors; run would exit 2"
                )
            if context is not None and party.train.max_length > context:
                found.append(
                    f"party.{party.name}: max_length {party.train.max_length} is above the "
                    f"{context} tokens that the model takes"
                )
    return tuple(found)
