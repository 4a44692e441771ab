"""`python -m fedkernels.info`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedkernels import info
from fedkernels._extension import is_built, why_not_built

ROOT = Path(__file__).resolve().parents[2]


def test_every_public_op_is_listed_with_every_candidate():
    operations = info.operations()
    assert {"triple_lora_linear", "triple_lora_delta", "select_middle"} <= set(operations)
    listed = info.collect()["backends (cpu)"]
    for op, candidates in operations.items():
        for candidate in candidates:
            assert f"{candidate.name}: " in listed[op]
        if op != "emd":  # exact transport has no reference backend
            assert "reference: runs" in listed[op]


def test_it_says_what_was_built_or_why_not():
    built = info.collect()["compiled ops"]["built"]
    if is_built():
        assert built.startswith("yes, by ")
        assert info.capabilities()[0] == "plain"
        assert info.collect()["compiled ops"]["best here"] == info.capabilities()[-1]
    else:
        assert built == f"no: {why_not_built()}"
        assert info.capabilities() == ()


def test_without_the_extension_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(info, "is_built", lambda: False)
    monkeypatch.setattr(info, "why_not_built", lambda: "the build failed: no g++")
    assert info.collect()["compiled ops"]["built"] == "no: the build failed: no g++"


def test_a_shadowed_python_api_is_seen():
    assert info.collect()["fedkernels"]["python_api"] == str(ROOT / "python_api")


def test_the_module_runs():
    result = subprocess.run(
        [sys.executable, "-m", "fedkernels.info"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "torch" in result.stdout
    assert "triple_lora_linear" in result.stdout


@pytest.mark.skipif(not is_built(), reason=f"compiled ops: {why_not_built()}")
def test_an_impossible_capability_is_named():
    import os

    result = subprocess.run(
        [sys.executable, "-m", "fedkernels.info"],
        cwd=ROOT,
        env={**os.environ, "FEDKERNELS_CPU_CAPABILITY": "mmx"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "FEDKERNELS_CPU_CAPABILITY must be plain, avx2 or avx512, got mmx" in result.stdout
