"""The fragments of mma.sync: a kernel and the emulation that tests it could share one mistake, so
the layout is compared with Triton's own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
FRAGMENTS = ("tf32_a", "tf32_b", "bf16_a", "bf16_b", "mma_d")  # the order of sound.cpp


@pytest.fixture(scope="module")
def triton_layouts() -> dict[str, list]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    script = [sys.executable, str(HERE / "triton_layouts.py")]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_are_those_of_triton(programs, triton_layouts, name):
    expected = np.array(triton_layouts[name])
    got = np.zeros(expected.shape, np.int64)
    sound = programs(HERE / "kernels/sound.cpp")
    sound.call("fragment", FRAGMENTS.index(name), expected.shape[1], got)
    assert (got == expected).all()
