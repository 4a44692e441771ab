"""What reading any part of a config takes: whose file it is, and the line for a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from python_api.config.keys import check_keys
from python_api.config.messages import one_line
from python_api.config.settings import Setting
from python_api.config.table import Table
from python_api.errors import InputError

__all__ = ["Layers", "Reader"]

T = TypeVar("T", bound=Table)
Layers = Sequence[
    tuple[str, Mapping[str, Any]]
]  # (place as the user writes it, its table), weakest first


class Reader:
    """base: the folder that relative paths count from. source: the file's name in messages.

    setting: which keys are known, and where.
    """

    setting: Setting = "tuning"

    def __init__(self, base: Path, source: str) -> None:
        self.base, self.source = base, source

    def keys(self, values: Mapping[str, Any], place: str, where: str) -> None:
        check_keys(values, place, where, self.source, self.setting)

    def path(self, value: str) -> str:
        return str((self.base / Path(value).expanduser()).resolve())

    def build(self, cls: type[T], values: Mapping[str, Any], where: str) -> T:
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError(f"{self.source}: {one_line(cls, error, where)}") from error
