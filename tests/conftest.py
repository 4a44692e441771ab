"""One state for every test: no network, no file outside the test folders, fixed seeds."""

from __future__ import annotations

import os
import random
import tempfile

# Read when the libraries are imported, so they have to be set before.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
_cache = None
if "FEDKERNELS_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="fedkernels-tests-")
    os.environ["FEDKERNELS_CACHE"] = _cache.name

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    # A test that switches the global state of torch and fails must not decide the next one.
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
