"""The run folder: who writes what, and how nothing in it is ever half-written.

config.toml  environment.json  status.json     written aside, then renamed into place
metrics.jsonl  traffic.jsonl  log.txt          appended line by line
models/<party>/                                exchanged as a whole after every round
checkpoints/round-000003/                      the last two rounds, hashed
figures/  report.html                          the report's
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.federation.bus import Party
    from python_api.federation.traffic import TrafficLog

__all__ = ["RunFolder", "check_free", "default_path"]


def default_path(algorithm: str) -> Path:
    """`runs/<algorithm>-<time>`, with a number behind it if that second is taken."""
    stem = f"{algorithm}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


def check_free(path: Path, *, overwrite: bool) -> None:
    """`InputError` if a run cannot be written to `path`. Writes nothing."""
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise InputError(
                f"out: {path} exists; expected a new folder, or overwrite (--overwrite)"
            )
        # Only what a run left is ever deleted, whatever name was typed.
        if not path.is_dir() or path.is_symlink() or not is_run_folder(path, or_empty=True):
            raise InputError(f"out: {path} is no run folder; expected one, or a new name")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"out: {path}: expected a place to write to, {parent} is none")


def is_run_folder(path: Path, *, or_empty: bool = False) -> bool:
    if (path / "status.json").is_file() and (path / "config.toml").is_file():
        return True
    return or_empty and path.is_dir() and not any(path.iterdir())


class RunFolder:
    """Creates the folder and owns every file in it but the report's.

    Errors: `InputError` from `create` if the path is taken (see `check_free`).
    """

    def __init__(self, path: Path, *, status: Mapping[str, Any], began: float) -> None:
        from python_api.federation.traffic import TrafficLog

        self.path = path
        self.traffic: TrafficLog = TrafficLog(path / "traffic.jsonl")
        self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        self._log = (path / "log.txt").open("a", encoding="utf-8")
        self._began = began
        self._status = dict(status)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        config: str,
        environment: Mapping[str, object],
        algorithm: str,
        rounds: int,
        overwrite: bool = False,
        began: float | None = None,
    ) -> RunFolder:
        """Appears at `path` at once and complete, with status "running".

        config: the resolved TOML.
        began: `time.perf_counter()` when the run began, before its models were built.
        """
        path = Path(path)
        check_free(path, overwrite=overwrite)
        began = time.perf_counter() if began is None else began
        seconds = time.perf_counter() - began
        status = {
            "status": "running",
            "algorithm": algorithm,
            "round": 0,
            "rounds": rounds,
            "started": stamp(time.time() - seconds),
            "ended": None,
            "seconds": round(seconds, 3),
            "reason": None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.new-{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        for name in ("models", "checkpoints", "figures"):
            (staging / name).mkdir(parents=True)
        (staging / "config.toml").write_text(config, encoding="utf-8")
        for file, value in (("environment.json", environment), ("status.json", status)):
            (staging / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        check_free(path, overwrite=overwrite)
        exchange(staging, path)
        shutil.rmtree(staging, ignore_errors=True)  # the old run, if there was one
        return cls(path, status=status, began=began)

    def metric(self, row: Mapping[str, Any]) -> None:
        """A row of `metrics.jsonl`; JSON has no NaN, so a value that is none becomes null."""
        value = float(row["value"])
        self._metrics.write(json.dumps({**row, "value": value if math.isfinite(value) else None}))
        self._metrics.write("\n")
        self._metrics.flush()

    def log(self, text: str) -> None:
        self._log.write(f"{stamp()} {text}\n")
        self._log.flush()

    def keep_round(
        self, number: int, parties: Sequence[Party], server_state: Mapping[str, object]
    ) -> None:
        """Checkpoint first: it is what a resume believes, and the models follow from it."""
        from python_api.federation.checkpoint import save_round

        states = {
            "server": server_state,
            **{party.name: party.state() for party in parties},
        }
        # Where the line files stood: a resume cuts them back to this round. Times differ from run
        # to run, so the offsets stand outside the hash.
        extra = {
            name: (self.path / name).stat().st_size for name in ("metrics.jsonl", "traffic.jsonl")
        }
        save_round(self.path / "checkpoints", number, states, extra=extra)
        self.save_models(parties)
        self._status["round"] = number
        self._write_status()

    def save_models(self, parties: Sequence[Party]) -> None:
        """Replaces `models/` in one step: readers see the old round's models or the new one's."""
        models, staging = self.path / "models", self.path / ".models.new"
        shutil.rmtree(staging, ignore_errors=True)
        for party in parties:
            target = staging / party.name
            target.mkdir(parents=True)
            base = models / party.name / "base"
            if base.is_dir():  # a frozen base is written once, and linked from then on
                shutil.copytree(base, target / "base", copy_function=os.link)
            party.save(target)
        exchange(staging, models)
        shutil.rmtree(staging, ignore_errors=True)

    def finish(self, status: str, reason: str | None = None) -> None:
        """status: "finished", "interrupted" or "failed", the last with its reason."""
        if status not in ("finished", "interrupted", "failed"):
            raise ValueError(f"a run ends finished, interrupted or failed, got {status!r}")
        shutil.rmtree(self.path / ".models.new", ignore_errors=True)
        self._status |= {"status": status, "ended": stamp(), "reason": reason}
        self._write_status()
        self.log(status if reason is None else f"{status}: {reason}")

    def close(self) -> None:
        self.traffic.close()
        self._metrics.close()
        self._log.close()

    def _write_status(self) -> None:
        self._status["seconds"] = round(time.perf_counter() - self._began, 3)
        write_text(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")


def exchange(new: Path, place: Path) -> None:
    """Puts the folder `new` in `place`, and what was in `place` where `new` was.

    On Linux that is one system call. Elsewhere two renames, between which `place` is missing.
    """
    if not place.exists():
        os.replace(new, place)
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 and renameat2(here, os.fsencode(new), here, os.fsencode(place), swap) == 0:
        return
    aside = new.with_name(new.name + ".aside")
    os.replace(place, aside)
    os.replace(new, place)
    os.replace(aside, new)


def write_text(path: Path, text: str) -> None:
    """Never half of it: written beside, then renamed over."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def stamp(at: float | None = None) -> str:
    """A time as ISO 8601 in UTC; now, unless `at` (seconds since 1970) is given."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
