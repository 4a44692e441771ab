"""The row that `check_kernels` returns and prints."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckRow"]


@dataclass(frozen=True)
class CheckRow:
    """One case on one backend in one dtype; `str(row)` is the line that is printed.

    status: "passed", "failed" or "skipped" (the backend cannot run here; detail says why).
    """

    family: str
    op: str
    case: str
    backend: str
    dtype: str
    status: str
    detail: str
    used: float | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        place = f"{self.op:20}{self.case:26}{self.backend:11}{self.dtype:10}"
        return f"{self.status:8}{place}{self.detail}"
