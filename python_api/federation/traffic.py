"""`traffic.jsonl`: one row for every frame that crossed the bus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

__all__ = ["TrafficLog"]


class TrafficLog:
    """Rows `{"round", "party", "op", "direction", "bytes", "wire_bytes"}`, written at once.

    `party` is the end that is not the server; `bytes` counts tensors and texts, `wire_bytes` the
    frame. A broadcast is one row per receiver. Without a path the rows live in memory only.

    >>> log = TrafficLog()
    >>> log.add(round=1, party="shop", op="upload", direction="up", bytes=8, wire_bytes=200)
    >>> log.rows[0]["direction"], log.total("up"), log.total("down")
    ('up', 8, 0)
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file: IO[str] | None = (
            Path(path).open("a", encoding="utf-8") if path else None  # noqa: SIM115 - kept open
        )

    def add(
        self,
        *,
        round: int,
        party: str,
        op: str,
        direction: str,
        bytes: int,
        wire_bytes: int,
    ) -> None:
        if direction not in ("up", "down"):
            raise ValueError(f'direction must be "up" or "down", got {direction!r}')
        row = {
            "round": round,
            "party": party,
            "op": op,
            "direction": direction,
            "bytes": bytes,
            "wire_bytes": wire_bytes,
        }
        self.rows.append(row)
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def total(self, direction: str, *, key: str = "bytes") -> int:
        """The sum of `bytes` (or `wire_bytes`) in one direction."""
        return sum(int(row[key]) for row in self.rows if row["direction"] == direction)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
