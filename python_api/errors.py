"""What users see when something is wrong: one line that says what, where, and what was expected."""

from __future__ import annotations

__all__ = ["InputError", "RunFailed"]


class InputError(ValueError):
    """Bad input: a key, a file and line, a size. The command exits with 2."""


class RunFailed(RuntimeError):
    """A run that began well and could not be finished. The command exits with 1."""
