"""From what a user wrote to a `RunConfig`: read, check the keys, merge by precedence, resolve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from python_api.config.defaults import known_algorithms
from python_api.config.keys import nearest
from python_api.config.load_tuning import TuningResolver
from python_api.config.load_vertical import VerticalResolver
from python_api.config.overrides import Overrides
from python_api.config.read import read_source
from python_api.config.resolver import Resolver
from python_api.config.schema import RunConfig
from python_api.config.settings import Setting, setting_of
from python_api.errors import InputError

__all__ = ["load_config"]

RESOLVERS: dict[Setting, type[Resolver]] = {
    "tuning": TuningResolver,
    "vertical": VerticalResolver,
}


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    *,
    device: str | None = None,
) -> RunConfig:
    """The resolved config of an algorithm's name (its defaults), a TOML file, or a dict like one.

    Weakest first: what is built in, the algorithm's presets, [train], [defaults], [[party]],
    `overrides` (`{"party.shop.rank": 8, "party.*.lr": 1e-3, "rounds": 3}`); `device` beats all.
    Relative paths count from the file's folder (dict: from the working folder).

    Errors: `InputError`, one line that names the file, the key and what was expected.

    >>> config = load_config("h2tune", {"party.*.rank": 4, "rounds": 2})
    >>> [party.rank for party in config.parties], config.rounds
    ([4, 4, 4], 2)
    """
    values, base, name = read_source(source)
    sets = Overrides.parse(overrides or {})
    sets.apply_tables(values, name)
    algorithm = _algorithm(values, name)
    resolver = RESOLVERS[setting_of(algorithm, values)]
    return resolver(values, base, name, sets).run(algorithm, device)


def _algorithm(values: Mapping[str, Any], source: str) -> str:
    known = known_algorithms()
    name = values.get("algorithm")
    if name is None:
        raise InputError(
            f"{source}: no algorithm; expected algorithm = one of {', '.join(known)} as "
            "the first line"
        )
    if name not in known:
        near = nearest(str(name), known)
        hint = f"nearest known: {near}" if near else f"expected one of {', '.join(known)}"
        raise InputError(f"{source}: algorithm: {name!r} is not known; {hint}")
    return name
