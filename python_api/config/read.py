"""The source of a config: an algorithm's name, a TOML file, a dict."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from python_api.config.defaults import default_source, known_algorithms
from python_api.config.keys import nearest
from python_api.errors import InputError

__all__ = ["read_source"]


def read_source(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path, str]:
    """(values, the folder that relative paths count from, the name for messages)."""
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), Path.cwd(), "config"
    if str(source) in known_algorithms():
        return default_source(str(source)), Path.cwd(), str(source)
    path = Path(source)
    if not path.is_file():
        if path.suffix != ".toml" and "/" not in str(source):
            near = nearest(str(source), known_algorithms())
            hint = (
                f"; nearest known: {near}" if near else f"; known: {', '.join(known_algorithms())}"
            )
            raise InputError(f"{source}: neither an algorithm nor a file{hint}")
        raise InputError(f"{path}: no such file; expected a TOML config or an algorithm's name")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    if not values:
        raise InputError(f'{path}: is empty; expected algorithm = "..." and [[party]] tables')
    return values, path.resolve().parent, str(path)
