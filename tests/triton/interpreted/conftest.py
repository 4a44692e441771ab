"""Collected only where the interpreter is on: `test_interpreted.py` starts such processes."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
