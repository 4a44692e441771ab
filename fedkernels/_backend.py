"""The one rule that picks a backend and says why another was refused.

A family writes its backends down as a tuple of `Candidate`s, in the order in which `backend="auto"`
tries them. An explicit backend runs or raises: there is no silent substitute.

The environment is read once, at import:

    FEDKERNELS_BACKEND=name   what `auto` means; an explicit backend is not touched
    FEDKERNELS_LOG=1          the first choice of each op, once, through logging "fedkernels"
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["BACKENDS", "BackendUnavailable", "Candidate", "refusals", "resolve"]

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")

_AUTO = os.environ.get("FEDKERNELS_BACKEND", "auto").strip() or "auto"
_LOG = os.environ.get("FEDKERNELS_LOG", "0") == "1"
_logged: set[str] = set()
_logger = logging.getLogger("fedkernels")
if _LOG and _logger.level == logging.NOTSET:
    # Whoever asks for the log by the environment has set up no logging: Python would drop INFO.
    _logger.setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        _logger.addHandler(logging.StreamHandler())


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run this call; the message lists every candidate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend of one op.

    name: one of `BACKENDS` but "auto".
    why_not: gets the inputs of the call (what they are is between a family's api.py and its
        candidates) and returns why the backend cannot run them, or None if it can. It looks at
        device, dtype and what was built only: a shape that is read here becomes a guard under
        `torch.compile`.
    """

    name: str
    why_not: Callable[[Any], str | None]


def resolve(op: str, backend: str, candidates: Sequence[Candidate], inputs: Any) -> str:
    """The name of the backend that runs `op` on `inputs`.

    Raises ValueError for a name that is no backend, BackendUnavailable if the backend that was
    asked for, or under `auto` every candidate, refuses the inputs.

    >>> candidates = (
    ...     Candidate("cpu", lambda device: None if device == "cpu" else f"x is on {device}"),
    ...     Candidate("reference", lambda device: None),
    ... )
    >>> resolve("scale", "auto", candidates, "cpu")
    'cpu'
    >>> resolve("scale", "auto", candidates, "cuda")
    'reference'
    """
    wanted = _AUTO if backend == "auto" else backend
    for candidate in candidates:
        if (wanted == "auto" or wanted == candidate.name) and candidate.why_not(inputs) is None:
            if _LOG and not torch.compiler.is_compiling() and op not in _logged:
                _log_choice(op, candidate.name, candidates, inputs)
            return candidate.name
    raise _refusal(op, backend, wanted, candidates, inputs)


def refusals(candidates: Sequence[Candidate], inputs: Any) -> dict[str, str | None]:
    """Each candidate's name with the reason why it cannot run `inputs` (None: it can)."""
    return {candidate.name: candidate.why_not(inputs) for candidate in candidates}


def _refusal(
    op: str, backend: str, wanted: str, candidates: Sequence[Candidate], inputs: Any
) -> Exception:
    source = "FEDKERNELS_BACKEND" if backend == "auto" and wanted != "auto" else "backend"
    if wanted not in BACKENDS:
        known = ", ".join(BACKENDS)
        return ValueError(f"{op}: {source} must be one of {known}; got {wanted!r}")
    listing = "; ".join(
        f"{name}: {reason or 'can run'}" for name, reason in refusals(candidates, inputs).items()
    )
    if wanted == "auto":
        return BackendUnavailable(f"{op}: no backend can run this call ({listing})")
    return BackendUnavailable(f"{op}: {source} {wanted!r} cannot run this call ({listing})")


def _log_choice(op: str, name: str, candidates: Sequence[Candidate], inputs: Any) -> None:
    _logged.add(op)
    skipped = [f"{n}: {r}" for n, r in refusals(candidates, inputs).items() if r is not None]
    _logger.info("%s runs on %s%s", op, name, f" ({'; '.join(skipped)})" if skipped else "")
