"""The examples that draw run, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkernels._extension import is_built, why_not_built

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not is_built(), reason=f"not built: {why_not_built()}")
def test_transport_plans(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "figures" / "plans.png"
    command = [sys.executable, str(ROOT / "examples" / "transport_plans.py"), "--out", str(out)]
    done = subprocess.run(
        [*command, "--points", "9", "--iterations", "12"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["eps 1", "eps 0.1", "eps 0.01", "picture"]
    assert "after 12 iterations" in lines[0]
