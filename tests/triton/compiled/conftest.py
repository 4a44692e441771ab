"""Collected only by `make triton-check`: the stand-in for a driver is of the whole process."""

from __future__ import annotations

import os
import tempfile

collect_ignore_glob = [] if os.environ.get("FEDKERNELS_TRITON_CHECK") == "1" else ["test_*.py"]

if os.environ.get("FEDKERNELS_TRITON_CHECK") == "1" and "TRITON_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="fedkernels-triton-")
    os.environ["TRITON_CACHE_DIR"] = _cache.name
