"""Collected only where the interpreter is on, or a GPU is named: `test_interpreted.py` starts
processes of the first kind, `tests/gpu` of the second."""

from __future__ import annotations

import os

_wanted = os.environ.get("TRITON_INTERPRET") == "1" or "FEDKERNELS_TRITON_DEVICE" in os.environ
collect_ignore_glob = [] if _wanted else ["test_*.py"]
