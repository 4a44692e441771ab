"""From a run's config, or from its folder, to fine-tuning parties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from python_api.algorithms.finetune import FineTuneParty
from python_api.errors import InputError
from python_api.models.bases import load_bases, resolve_device

if TYPE_CHECKING:
    from python_api.config import RunConfig

__all__ = ["load_party", "make_parties"]


def make_parties(
    run: RunConfig, *, cls: type[FineTuneParty] = FineTuneParty, progress: Any = None
) -> list[Any]:
    """Load every party's task and base and build the parties, in the order of the config."""
    from python_api.data.task import load_task

    data = {p.name: load_task(p.task, seed=run.seed, party=p.name) for p in run.parties}
    bases = load_bases(run, data, progress=progress)
    parties = [cls(p, run, bases[p.name], data[p.name]) for p in run.parties]
    for party in parties:
        party.check_train()
    return parties


def load_party(folder: str | Path, name: str) -> FineTuneParty:
    """A party of a finished run, for prediction and export.

    Base, rank, scale and slots are those that were saved: an algorithm may have given the party
    another model than its config names (`centralised` does).

    Raises:
        InputError: no such run or party, or nothing saved yet.
    """
    from python_api.config import load_config
    from python_api.models.disk import load_disk
    from python_api.models.export import load_native, read_sizes

    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: no config.toml; expected a run folder")
    run = load_config(folder / "config.toml")
    named = {party.name: party for party in run.parties}
    if name not in named:
        raise InputError(f"{folder}: no party {name!r}; expected one of {' '.join(named)}")
    saved = folder / "models" / name
    if not (saved / "native" / "task.json").is_file():
        raise InputError(f"{saved}: no saved model; expected one after a finished round")
    party = named[name]
    task = json.loads((saved / "native" / "task.json").read_text())
    sizes = read_sizes(saved / "native")
    own = (saved / "base").is_dir()
    dtype = torch.bfloat16 if party.train.precision == "bfloat16" else torch.float32
    base = load_disk(
        str(saved / "base") if own else sizes.base,
        device=resolve_device(party.device or run.device),
        dtype=dtype,
        prompt=task["prompt"],
    )
    if own:
        base.path = None
    update = {
        "rank": sizes.rank,
        "alpha": sizes.scale * sizes.rank,
        "modules": sizes.slots,
        "slots": task["slots"],
    }
    loaded = FineTuneParty(party.model_copy(update=update), run, base, None, labels=task["labels"])
    load_native(loaded.model, saved / "native")
    return loaded
