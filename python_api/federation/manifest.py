"""What may cross the bus: each op's entries, declared once, checked at both ends."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from python_api.errors import RunFailed

__all__ = ["Manifest", "ManifestError", "OpRule", "Rule"]

Sizes = Mapping[str, int]
Extent = int | str | None | Callable[[Sizes], int]
Direction = Literal["down", "up"]

KINDS = ("tensor", "text", "number", "bytes")
TREATMENTS = ("plain",)
TEXT_CAP = 1 << 20


class ManifestError(RunFailed):
    """A payload that is not declared: op, entry, party, expected and got in one line."""


@dataclass(frozen=True)
class Rule:
    """One entry of a payload.

    kind: `"tensor"`, `"text"` (a text or a list of texts), `"number"` (int, float or bool) or
        `"bytes"`.
    dtype: a tensor's dtype, or several that are allowed; None allows all that the wire carries.
    shape: per dimension an int, None (any extent), the name of a size that the party declared
        (`Party.sizes`), or a function of those sizes; None allows every shape.
    finite: a tensor or number must hold no NaN and no infinity.
    max_bytes: the largest entry; 1 MiB for texts and bytes unless it is given.
    optional: the entry may be missing.
    treatment: `"plain"`, sent as it is.

    >>> rule = Rule(dtype=torch.float32, shape=("layers", 7, None, lambda s: 2 * s["rank"]))
    >>> rule.why_not(torch.zeros(3, 7, 5, 8), {"layers": 3, "rank": 4}) is None
    True
    >>> rule.why_not(torch.zeros(3, 7, 5, 9), {"layers": 3, "rank": 4})
    'expected float32 of shape (3, 7, any, 8), got float32 of shape (3, 7, 5, 9)'
    """

    kind: Literal["tensor", "text", "number", "bytes"] = "tensor"
    dtype: torch.dtype | tuple[torch.dtype, ...] | None = None
    shape: tuple[Extent, ...] | None = None
    finite: bool = True
    max_bytes: int | None = None
    optional: bool = False
    treatment: str = "plain"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.treatment not in TREATMENTS:
            raise ValueError(f"treatment must be 'plain', got {self.treatment!r}")
        if self.kind != "tensor" and (self.dtype is not None or self.shape is not None):
            raise ValueError(f"dtype and shape belong to a tensor, not to kind {self.kind!r}")

    def why_not(self, value: object, sizes: Sizes) -> str | None:
        """None if the value is allowed, else "expected ..., got ..."."""
        if not self._is_kind(value):
            return f"expected {self.describe(sizes)}, got {_describe(value)}"
        if isinstance(value, Tensor):
            return self._tensor_why_not(value, sizes)
        if self.kind == "number":
            if self.finite and not math.isfinite(value):  # type: ignore[arg-type]
                return f"expected a finite number, got {value}"
            return None
        cap = TEXT_CAP if self.max_bytes is None else self.max_bytes
        size = _size(value)  # type: ignore[arg-type]
        return f"expected at most {cap} bytes, got {size}" if size > cap else None

    def describe(self, sizes: Sizes | None = None) -> str:
        """The rule in words, with a party's sizes put in where they are given."""
        if self.kind != "tensor":
            return {"text": "text", "number": "a number", "bytes": "bytes"}[self.kind]
        dtypes = self._dtypes()
        words = " or ".join(map(_name, dtypes)) if dtypes else "a tensor"
        return words if self.shape is None else f"{words} of shape {self.shape_text(sizes)}"

    def shape_text(self, sizes: Sizes | None = None) -> str:
        """`(3, 7, any)`; without sizes the declared names stand in their place."""
        if self.shape is None:
            return "any" if self.kind == "tensor" else ""
        shown = [_extent_text(extent, sizes) for extent in self.shape]
        return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"

    def _is_kind(self, value: object) -> bool:
        if self.kind == "tensor":
            return isinstance(value, Tensor)
        if self.kind == "number":
            return isinstance(value, int | float)
        if self.kind == "bytes":
            return isinstance(value, bytes)
        return isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(text, str) for text in value)
        )

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        if self.dtype is None:
            return ()
        return self.dtype if isinstance(self.dtype, tuple) else (self.dtype,)

    def _tensor_why_not(self, value: Tensor, sizes: Sizes) -> str | None:
        dtypes = self._dtypes()
        wrong_dtype = bool(dtypes) and value.dtype not in dtypes
        if wrong_dtype or not self._shape_fits(value, sizes):
            return f"expected {self.describe(sizes)}, got {_describe(value)}"
        size = value.numel() * value.element_size()
        if self.max_bytes is not None and size > self.max_bytes:
            return f"expected at most {self.max_bytes} bytes, got {size}"
        floating = value.is_floating_point() or value.is_complex()
        if self.finite and floating and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            return f"expected finite values, got {bad} NaN or infinite of {value.numel()}"
        return None

    def _shape_fits(self, value: Tensor, sizes: Sizes) -> bool:
        if self.shape is None:
            return True
        if value.dim() != len(self.shape):
            return False
        wanted = (_extent(extent, sizes) for extent in self.shape)
        return all(
            want is None or want == have for want, have in zip(wanted, value.shape, strict=True)
        )


@dataclass(frozen=True)
class OpRule:
    """What one op sends to a party (`down`) and gets back (`up`). An empty side sends nothing.

    valid: looks at the values of a reply whose entries fit their rules, given the party's sizes;
        None if the server can work with them, else "entry ...: expected ..., got ...".
    """

    down: Mapping[str, Rule] = field(default_factory=dict)
    up: Mapping[str, Rule] = field(default_factory=dict)
    valid: Callable[[Mapping[str, Any], Sizes], str | None] | None = None


class Manifest:
    """All ops that an algorithm may call, with everything that they may carry.

    >>> manifest = Manifest({"upload": OpRule(up={"G": Rule(dtype=torch.float32, shape=(2,))})})
    >>> manifest.check("upload", "up", {"G": torch.zeros(2)}, party="shop", sizes={})
    >>> manifest.check("upload", "up", {"x": torch.zeros(2)}, party="shop", sizes={})
    Traceback (most recent call last):
    python_api.federation.manifest.ManifestError: op 'upload' up, entry 'x', party 'shop': \
expected no such entry (declared: G), got float32 of shape (2,)
    """

    def __init__(self, ops: Mapping[str, OpRule]) -> None:
        for op in ops:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", op):
                raise ValueError(f"an op is a lower-case method name, got {op!r}")
        self.ops = dict(ops)

    def rule(self, op: str) -> OpRule:
        """The op's rule; `ManifestError` if it is not declared."""
        if op not in self.ops:
            raise ManifestError(f"op {op!r}: expected one of {', '.join(self.ops)}, got {op!r}")
        return self.ops[op]

    def check(
        self,
        op: str,
        direction: Direction,
        payload: Mapping[str, object],
        *,
        party: str,
        sizes: Sizes,
    ) -> None:
        """Refuses what is not declared; `ManifestError` names the first entry that does not fit."""
        rules = self.rule(op).down if direction == "down" else self.rule(op).up
        where = f"op {op!r} {direction}"
        if not isinstance(payload, Mapping):
            raise ManifestError(
                f"{where}, party {party!r}: expected a dict of entries, got {_describe(payload)}"
            )
        for name, value in payload.items():
            at = f"{where}, entry {name!r}, party {party!r}"
            if name not in rules:
                known = ", ".join(rules) or "none"
                raise ManifestError(
                    f"{at}: expected no such entry (declared: {known}), got {_describe(value)}"
                )
            reason = rules[name].why_not(value, sizes)
            if reason:
                raise ManifestError(f"{at}: {reason}")
        for name, rule in rules.items():
            if name not in payload and not rule.optional:
                raise ManifestError(
                    f"{where}, entry {name!r}, party {party!r}: "
                    f"expected {rule.describe(sizes)}, got nothing"
                )
        valid = self.rule(op).valid
        reason = valid(payload, sizes) if valid and direction == "up" else None
        if reason:
            raise ManifestError(f"{where}, party {party!r}: {reason}")

    def rows(self) -> list[dict[str, object]]:
        """The manifest as rows for people: what may leave, in which form and treatment."""
        return [
            {
                "op": op,
                "direction": direction,
                "entry": name,
                "kind": rule.kind,
                "dtype": " or ".join(map(_name, rule._dtypes())),
                "shape": rule.shape_text(),
                "finite": rule.finite,
                "optional": rule.optional,
                "treatment": rule.treatment,
            }
            for op, rules in self.ops.items()
            for direction, side in (("down", rules.down), ("up", rules.up))
            for name, rule in side.items()
        ]


def _extent(extent: Extent, sizes: Sizes) -> int | None:
    if extent is None or isinstance(extent, int):
        return extent
    if isinstance(extent, str):
        if extent not in sizes:
            raise ManifestError(
                f"size {extent!r}: the party declared {', '.join(sizes) or 'no sizes'}"
            )
        return sizes[extent]
    return int(extent(sizes))


def _extent_text(extent: Extent, sizes: Sizes | None) -> str:
    if extent is None:
        return "any"
    if sizes is not None:
        return str(_extent(extent, sizes))
    return str(extent) if isinstance(extent, int | str) else "by party"


def _size(value: bytes | str | list[str]) -> int:
    if isinstance(value, bytes):
        return len(value)
    texts = [value] if isinstance(value, str) else value
    # an empty text of a list counts 1: its place in the list travels
    floor = 0 if isinstance(value, str) else 1
    return sum(max(floor, len(text.encode(errors="surrogatepass"))) for text in texts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} of shape {tuple(value.shape)}"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "nothing" if value is None else type(value).__name__
