"""A grid over a config: the runs that it stands for, each with the hash of all that decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_api.errors import InputError
from python_api.sweep.grid import Grid, Row

if TYPE_CHECKING:
    from python_api.config import RunConfig

__all__ = ["Job", "Plan", "make_plan"]

Source = str | Path | dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run: a row and a seed.

    folder: where its run folder goes. hash: of the resolved config and of the files that it names.
    keep_folder: False removes the run folder once its numbers are recorded.
    """

    row: str
    seed: int
    source: Source
    overrides: Mapping[str, Any]
    folder: Path
    hash: str
    keep_folder: bool = True


@dataclass(frozen=True)
class Plan:
    """All runs of one sweep, seed by seed, so that pairs are complete early."""

    grid: Grid
    path: Path
    jobs: tuple[Job, ...]
    configs: Mapping[str, RunConfig]  # of every row, with the first seed

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)


def make_plan(
    source: Source | Callable[[int], Source],
    grid: Grid,
    out: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    keep_folders: bool = True,
) -> Plan:
    """The runs of `grid` over `source`, without starting one.

    source: a config, as `run` takes it, or a function that gives one for a seed.
    overrides: laid over the config below every row's own `set`.

    Errors: `InputError` of the first row that the config refuses.
    """
    from python_api.config.read import read_source

    out, jobs, configs = Path(out), [], {}
    for seed in grid.seeds:
        given = source(seed) if callable(source) else source
        read_source(given)  # what is wrong with it is no row's fault
        for row in grid.rows:
            laid = {**(overrides or {}), **row.set, "seed": seed}
            config = _resolve(given, laid, row)
            if row.name not in configs:
                configs[row.name] = config
                _check_parties(grid, row, config)
            folder = out / "runs" / f"{row.folder}-{seed}"
            jobs.append(Job(row.name, seed, given, laid, folder, _hash(config), keep_folders))
    return Plan(grid, out, tuple(jobs), configs)


def _resolve(source: Source, overrides: Mapping[str, Any], row: Row) -> RunConfig:
    from python_api.config import load_config

    try:
        return load_config(source, overrides)
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from error


def _check_parties(grid: Grid, row: Row, config: RunConfig) -> None:
    names = [party.name for party in config.parties]
    for name in grid.party:
        if name not in (*names, "server"):
            raise InputError(
                f"row {row.name}: party: the config has no {name!r}; expected some of "
                f"{', '.join(names)}"
            )


def _hash(config: RunConfig) -> str:
    """Of the config in full, and of every file that a key of it names."""
    from python_api.config import dump_config

    text = dump_config(config)
    digest = hashlib.sha256(text.encode())
    for path in sorted(set(_files(config.model_dump()))):
        digest.update(f"{path}\n{_content(path, path.stat().st_mtime_ns)}".encode())
    return digest.hexdigest()[:16]


def _files(value: Any) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _files(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _files(inner)
    elif isinstance(value, str) and value.startswith("/") and Path(value).is_file():
        yield Path(value)


@lru_cache(maxsize=1024)
def _content(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
