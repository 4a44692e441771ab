"""Every kernel compiles for three architectures within what a GPU has, without new spills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import triton

from tests.triton.compiled.ahead import SHARED, compiled, launches
from tests.triton.compiled.cases import CASES, architectures

FIGURES = json.loads((Path(__file__).parent / "figures.json").read_text(encoding="utf-8"))


RUNS = [(case, arch) for case in CASES for arch in architectures(case, SHARED)]


@pytest.mark.parametrize(("case", "arch"), RUNS)
def test_compiles(case, arch):
    recorded = FIGURES.get(triton.__version__, {}).get(f"sm_{arch}", {})
    for launch in launches(CASES[case]):
        found = compiled(launch, arch)
        where = f"{case} {found.name} sm_{arch}"
        assert found.shared <= SHARED[arch], where
        assert found.scratch == 0, where
        # All operands are float32: one rounding to TF32 would cost 300 times the error budget.
        assert set(found.precisions) <= {"tf32x3", "ieee"}, where
        if recorded:
            registers, spills = recorded[f"{case} {found.name}"]
            assert found.registers <= registers, where
            assert found.spills <= spills, where


def test_figures_of_this_triton_are_known():
    if triton.__version__ not in FIGURES:
        pytest.skip(f"no registers and spills are recorded for Triton {triton.__version__}")
    names = {name.split()[0] for name in FIGURES[triton.__version__]["sm_90"]}
    assert names == set(CASES)
