"""`--set a.b=c`: parsed, and laid over the file by precedence."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from python_api.errors import InputError

__all__ = ["Overrides", "parse_set"]


def parse_set(items: Sequence[str]) -> dict[str, object]:
    """`["party.shop.rank=8"]` -> `{"party.shop.rank": 8}`; values are TOML.

    >>> parse_set(["party.*.lr=1e-3", 'h2tune.share="shuffled"'])
    {'party.*.lr': 0.001, 'h2tune.share': 'shuffled'}
    """
    found: dict[str, object] = {}
    for item in items:
        key, sign, value = item.partition("=")
        key = key.strip()
        if not sign or not key or any(not part.strip() for part in key.split(".")):
            raise InputError(f"--set {item}: expected KEY=VALUE, such as party.shop.rank=8")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            text = value.strip()
            raise InputError(
                f"--set {item}: {text!r} is no TOML value; a text needs quotes: "
                f"--set '{key}=\"{text}\"'"
            ) from None
    return found


@dataclass
class Overrides:
    """What `--set` says: `train`, `defaults` and the parties' keys beat every [[party]]."""

    train: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    parties: dict[str, dict[str, Any]] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Overrides:
        """From `{"dotted.key": value}`; a value may be a table."""
        tree: dict[str, Any] = {}
        for key, value in values.items():
            parts = str(key).split(".")
            node = tree
            for part in parts[:-1]:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise InputError(f"--set {key}: {part} was set to a value before")
            last = parts[-1]
            if isinstance(value, Mapping) and isinstance(node.get(last), dict):
                node[last] |= copy.deepcopy(dict(value))
            else:
                node[last] = copy.deepcopy(value)
        made = cls()
        for name in ("train", "defaults"):
            if name in tree:
                setattr(made, name, _table(tree.pop(name), name))
        parties = _table(tree.pop("party", {}), "party")
        made.parties = {name: _table(own, f"party.{name}") for name, own in parties.items()}
        made.rest = tree
        return made

    def apply_tables(self, values: dict[str, Any], source: str) -> None:
        """Lay everything but `train`, `defaults` and parties over `values`, in place.

        `train` too is laid over [train], so that the run's own table says what runs.
        """
        _merge(values, self.rest, "")
        if self.train:
            own = values.setdefault("train", {})
            if isinstance(own, dict):
                for one, other in (("steps", "epochs"), ("epochs", "steps")):
                    if one in self.train and other not in self.train:
                        own.pop(other, None)
                own |= self.train

    def check_parties(self, names: Sequence[str], source: str) -> None:
        """Refuse a party that the config does not have, and a new name for one."""
        for name, own in self.parties.items():
            if name != "*" and name not in names:
                raise InputError(
                    f"--set party.{name}: {source} has no such party; expected one of "
                    f"{', '.join(names)} or *"
                )
            if "name" in own:
                raise InputError(f"--set party.{name}.name: a name is not to be set")

    def levels(self, party: str) -> list[tuple[str, dict[str, Any]]]:
        """(place, keys), weakest first."""
        found = [
            ("--set train", self.train),
            ("--set defaults", self.defaults),
            ("--set party.*", self.parties.get("*", {})),
            (f"--set party.{party}", self.parties.get(party, {})),
        ]
        return [(place, keys) for place, keys in found if keys]


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"--set {where}={value!r}: expected a key below it, as {where}.KEY=...")
    return dict(value)


def _merge(values: dict[str, Any], new: Mapping[str, Any], where: str) -> None:
    for key, value in new.items():
        place = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            node = values.setdefault(key, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {place}: {key} is no table but {node!r}")
            _merge(node, value, place)
        else:
            values[key] = value
