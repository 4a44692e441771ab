"""The bases of a run's parties: which device, which context, and who shares one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from python_api.errors import InputError
from python_api.federation.seeds import seed_for
from python_api.models.build import Base, load_base

if TYPE_CHECKING:
    from python_api.config import RunConfig
    from python_api.data.task import TaskData

__all__ = ["load_bases", "resolve_device"]


def load_bases(
    run: RunConfig, data: dict[str, TaskData], *, progress: Any = None
) -> dict[str, Base]:
    """The base of every party by name; parties with one path or one `[models]` name share it.

    Args:
        data: each party's task (its texts pre-train a model that reads its own).
        progress: called as `progress(party=, step=, steps=, loss=)` while a model is pre-trained.
    """
    from python_api.models.pretrain import task_texts

    contexts: dict[str, int] = {}
    for party in run.parties:
        key = party.model.shared or party.name
        need = party.train.max_length
        if party.task.kind == "generation":
            need += run.eval.max_new_tokens
        contexts[key] = max(contexts.get(key, 0), need)
    bases: dict[str, Base] = {}
    for party in run.parties:
        key = party.model.shared or party.name
        told = None
        if progress is not None:
            name = party.name

            def told(step: int, steps: int, loss: float, name: str = name) -> None:
                progress(party=name, step=step, steps=steps, loss=loss)

        bases[party.name] = load_base(
            party.model,
            texts=() if party.model.shared else task_texts(data[party.name].train),
            seed=seed_for(run.seed, 0, key, "model"),
            device=resolve_device(party.device or run.device),
            precision=party.train.precision,
            context=contexts[key],
            progress=told,
        )
        if bases[party.name].encoder and party.task.kind == "generation":
            raise InputError(
                f"party.{party.name}.task.kind: {party.model.kind or party.model.path} is an "
                "encoder and cannot generate; expected classification"
            )
    return bases


def resolve_device(name: str) -> str:
    """`"auto"` is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: {name} is asked for, but torch sees no CUDA device")
    return name
