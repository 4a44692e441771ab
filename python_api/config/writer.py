"""A config as TOML with a comment per key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from python_api.config.schema import EncoderConfig, ModelConfig, TaskConfig, VerticalPartyConfig
from python_api.config.table import Table

__all__ = ["Writer"]

WIDTH = 34  # where comments begin, if the line leaves room
# whose keys are named also where they have no value, but for those that stand elsewhere
LISTED: dict[type[Table], tuple[str, ...]] = {
    ModelConfig: ("shared",),
    TaskConfig: (),
    EncoderConfig: (),
    VerticalPartyConfig: ("train", "model"),
}


class Writer:
    """full: a comment stands above its key, with what the key takes; else beside it.

    about, defaults: comments and defaults that stand in place of a field's own, by "Class.key".
    """

    def __init__(
        self,
        full: bool,
        about: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.full = full
        self.about = about or {}
        self.defaults = defaults or {}
        self.lines: list[str] = []
        self.told: set[str] = set()

    def header(self, name: str, comment: str) -> None:
        self.lines += ["", f"{name:<{WIDTH}}# {comment}".rstrip()]

    def keys(self, cls: type[Table], values: dict[str, Any]) -> None:
        if self.full:
            values = values | self._missing(cls, values)
        for key, value in values.items():
            field = cls.model_fields.get(key)
            full_key = f"{cls.__name__}.{key}"
            comment = self.about.get(full_key, field.description if field else None)
            if key == "model":
                comment = "a name from [models]"
            line = f"# {key} = ..." if value is None else f"{key} = {_toml(value)}"
            if value is None and not self.full:
                continue
            known = full_key in self.told
            self.told.add(full_key)
            if not self.full:
                self.lines.append(line if known else f"{line:<{WIDTH - 1}} # {comment}")
                continue
            if not known:
                self.lines.append(f"# {comment}{_takes(field, self.defaults.get(full_key))}")
            self.lines.append(line)

    def _missing(self, cls: type[Table], values: dict[str, Any]) -> dict[str, Any]:
        """Keys that have no place in the default config: named once, commented out."""
        if cls not in LISTED:
            return {}
        return {
            key: None
            for key in cls.model_fields
            if key not in (*values, *LISTED[cls]) and f"{cls.__name__}.{key}" not in self.told
        }


def _takes(field: FieldInfo | None, default: Any = None) -> str:
    """`; one of ...; default ...`. default: stands in place of the field's own."""
    if field is None:
        return ""
    text = ""
    if get_origin(field.annotation) is Literal:
        text = "; one of " + ", ".join(_toml(choice) for choice in get_args(field.annotation))
    if default is None:
        default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or isinstance(default, dict | Table) or default == ():
        return text
    return f"{text}; default {_toml(default)}"


def _toml(value: Any) -> str:
    import tomli_w

    if isinstance(value, list | tuple):  # on one line: a comment may follow
        return f"[{', '.join(_toml(item) for item in value)}]"
    return tomli_w.dumps({"x": value})[4:].strip()
