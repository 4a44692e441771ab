"""What pydantic finds, in one line of this package's words."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import ValidationError

from python_api.config.table import Table

__all__ = ["one_line"]


def one_line(cls: type[Table], error: ValidationError, where: str) -> str:
    """The first finding of pydantic in the words of this package."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    name = ".".join(part for part in (where, key) if part)
    if first["type"] == "missing":
        return f"{name}: is missing"
    context = first.get("ctx", {})
    expected = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "a text in quotes",
        "dict_type": "a table",
        "tuple_type": "a list",
        "greater_than_equal": f"at least {context.get('ge')}",
        "greater_than": f"above {context.get('gt')}",
        "less_than": f"below {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "finite_number": "a finite number",
    }.get(first["type"], first["msg"].lower())
    if len(error.errors()) > 1 and key in ("test", "validation"):
        expected = "a file, or a share from 0 up to but not including 1"
    if first["type"] == "literal_error":
        choices = get_args(cls.model_fields[key].annotation)
        expected = "one of " + ", ".join(
            str(c).lower() if isinstance(c, bool) else f'"{c}"' for c in choices
        )
    value = _shown(first)
    return f"{name}: {value}; expected {expected}"


def _shown(finding: Any) -> str:
    """The value as TOML would show it."""
    value = finding["input"]
    return str(value).lower() if isinstance(value, bool) else repr(value)
