"""The examples that draw run, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkernels._extension import is_built, why_not_built

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, out: Path, *options: str) -> list[str]:
    """What the example prints; it has written a picture."""
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--out", str(out), *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return done.stdout.splitlines()


def test_prototype_regions(tmp_path):
    out = tmp_path / "figures" / "regions.png"
    lines = run("prototype_regions.py", out, "--points", "60", "--grid", "12")
    assert [line.split(":")[0] for line in lines] == ["prototypes", "k-means", "picture"]
    assert float(lines[0].split()[1]) > 90


@pytest.mark.skipif(not is_built(), reason=f"not built: {why_not_built()}")
def test_transport_plans(tmp_path):
    out = tmp_path / "figures" / "plans.png"
    lines = run("transport_plans.py", out, "--points", "9", "--iterations", "12")
    assert [line.split(":")[0] for line in lines] == ["eps 1", "eps 0.1", "eps 0.01", "picture"]
    assert "after 12 iterations" in lines[0]
