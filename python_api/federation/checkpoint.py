"""Round folders that are whole or not there: written aside, hashed, then renamed into place."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from python_api.federation.wire import pack_tensors, unpack_tensors

__all__ = ["Round", "latest_round", "load_round", "save_round"]

State = Mapping[str, object]
MANIFEST = "manifest.sha256.json"  # no owner's file: an owner's name holds no dot
KEEP = 2


@dataclass(frozen=True)
class Round:
    """A round folder that was proved whole. `extra` is what `save_round` was given."""

    round: int
    path: Path
    hash: str
    extra: dict[str, object]


def save_round(
    folder: Path | str,
    round: int,
    states: Mapping[str, State],
    *,
    keep: int = KEEP,
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Writes `folder/round-000003/` and removes all but the last `keep` rounds.

    states: by owner (a party's name, or `"server"`), each a nested dict or list of tensors, texts,
        bytes, numbers, booleans and None; a dict's keys are texts or integers. Tensors go to
        `<owner>.safetensors`, the rest to `<owner>.json`, the hashes to `manifest.sha256.json`.
    extra: JSON values that describe this run only (file offsets, times); no part of the hash.

    A kill at any byte leaves the earlier rounds as they were. Errors: `TypeError` names the value
    that cannot be kept.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".round-*"):
        shutil.rmtree(torn, ignore_errors=True)
    staging = folder / f".round-{round:06d}.{os.getpid()}"
    staging.mkdir()
    files: dict[str, dict[str, object]] = {}
    for owner, state in states.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", owner):
            raise ValueError(f"an owner is named by letters, digits, _ and -, got {owner!r}")
        tensors: dict[str, Tensor] = {}
        plain = json.dumps(_flatten(state, owner, tensors)).encode()
        for name, data in (
            (f"{owner}.json", plain),
            (f"{owner}.safetensors", pack_tensors(tensors)),
        ):
            _write(staging / name, data)
            files[name] = {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    manifest = {
        "round": round,
        "files": files,
        "hash": _hash(files),
        "extra": dict(extra or {}),
    }
    _write(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync(staging)
    final = folder / f"round-{round:06d}"
    if final.exists():  # a round that is run again; until the rename the one before it counts
        _discard(final)
    os.replace(staging, final)
    _sync(folder)
    for old in _numbers(folder)[keep:]:
        _discard(folder / f"round-{old:06d}")
    return final


def latest_round(folder: Path | str) -> Round | None:
    """The newest round whose every file matches its hash, or None. A torn folder is passed over."""
    folder = Path(folder)
    for number in _numbers(folder):
        found = _verify(folder / f"round-{number:06d}", number)
        if found:
            return found
    return None


def load_round(path: Path | str) -> dict[str, dict[str, object]]:
    """The states of a round folder, as `save_round` was given them (tensors on the CPU).

    Errors: `ValueError` if a file is missing, cut or changed.
    """
    path = Path(path)
    match = re.fullmatch(r"round-(\d+)", path.name)
    if not match or not _verify(path, int(match[1])):
        raise ValueError(f"{path}: expected a whole round folder, its files do not match")
    states: dict[str, dict[str, object]] = {}
    for file in sorted(path.glob("*.json")):
        if file.name == MANIFEST:
            continue
        tensors = unpack_tensors(file.with_suffix(".safetensors").read_bytes())
        states[file.stem] = _restore(json.loads(file.read_text()), tensors)  # type: ignore[assignment]
    return states


def _verify(path: Path, number: int) -> Round | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files, extra = manifest["files"], manifest["extra"]
        if manifest["round"] != number or manifest["hash"] != _hash(files):
            return None
        present = {file.name for file in path.iterdir()} - {MANIFEST}
        if present != set(files):
            return None
        for name, entry in files.items():
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Round(number, path, manifest["hash"], extra)


def _hash(files: Mapping[str, Mapping[str, object]]) -> str:
    text = json.dumps({name: files[name]["sha256"] for name in sorted(files)})
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(folder: Path) -> list[int]:
    """The round numbers found, newest first."""
    matches = (re.fullmatch(r"round-(\d{6,})", child.name) for child in folder.glob("round-*"))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _flatten(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """JSON of a state; what JSON has no form for stands in a dict of one key that starts with $."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"$tensor": key}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"$tuple": [_flatten(v, f"{where}[{i}]", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_flatten(v, f"{where}[{i}]", tensors) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        items = [[k, _flatten(v, f"{where}.{k}", tensors)] for k, v in value.items()]
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return dict(items)
        if all(isinstance(k, str | int) and not isinstance(k, bool) for k in value):
            return {"$items": items}
    raise TypeError(f"{where}: a {type(value).__name__} cannot be kept in a checkpoint")


def _restore(value: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_restore(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        tag, inner = next(iter(value.items()))
        if tag == "$tensor":
            return tensors[inner]
        if tag == "$bytes":
            return base64.b64decode(inner)
        if tag == "$tuple":
            return tuple(_restore(v, tensors) for v in inner)
        if tag == "$items":
            return {k: _restore(v, tensors) for k, v in inner}
    return {k: _restore(v, tensors) for k, v in value.items()}


def _discard(path: Path) -> None:
    """Out of sight first, so that a kill leaves no half-deleted round."""
    aside = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename survives a power cut only once the folder that holds it is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
