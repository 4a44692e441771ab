"""The tests of the Triton kernels under the interpreter, with the kernels on the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests/triton/interpreted").glob("test_*.py"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_the_gpu(path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(path)],
        env=environment | {"FEDKERNELS_TRITON_DEVICE": "cuda"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
