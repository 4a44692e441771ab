"""FEDKERNELS_CPU_CAPABILITY, which is read once per process: each case runs in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkernels.info import capabilities
from tests.ops.kit import needs_extension

pytestmark = [needs_extension, pytest.mark.once]  # each test names the set that it wants
ROOT = Path(__file__).resolve().parents[2]
SETS = ("plain", "avx2", "avx512")

# Cases of every dtype with dropout and blocks, and the selection, within budget or exact.
CHECK = """
import torch
from fedkernels import select_middle
from fedkernels.testing import SELECT_MIDDLE_CASES, select_middle_inputs
from fedkernels.testing.check.compare import selection_is_exact
from tests.ops.kit import DTYPES, TENSORS, call
from tests.ops.test_values import check

for dtype in DTYPES:
    options = {"dropout_p": 0.3, "training": True}
    check(call((50,), 80, 72, 17, dtype=dtype, **options), "cpu")
    check(call((13,), 40, 24, 5, dtype=dtype), "cpu")
    c = call((50,), 80, 72, 4, dtype=dtype, a_width=32, in_index=torch.tensor([0, 4]), block=16)
    check(c, "cpu")
    for case in SELECT_MIDDLE_CASES:
        inputs = select_middle_inputs(case, dtype=dtype)
        found = selection_is_exact(inputs["middle"], inputs["scores"], case.rank, backend="cpu")
        assert found.passed, found.detail
print("all within budget")
"""
ONE_CALL = """
import torch, fedkernels
x, W, A, B = torch.ones(2, 4), torch.ones(3, 4), torch.ones(1, 4), torch.ones(3, 1)
fedkernels.triple_lora_linear(x, W, A, None, B, backend="cpu")
"""
ONE_SELECTION = """
import torch, fedkernels
fedkernels.select_middle(torch.ones(3, 3), torch.ones(3, 3), 2, backend="cpu")
"""


def _run(code: str, capability: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FEDKERNELS_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("capability", capabilities())
def test_every_set_of_this_machine_is_within_budget(capability):
    done = _run(CHECK, capability)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "all within budget"


@pytest.mark.parametrize("code", [ONE_CALL, ONE_SELECTION])
def test_an_unknown_set_is_an_error_that_names_the_known_ones(code):
    done = _run(code, "avx1024")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ValueError: FEDKERNELS_CPU_CAPABILITY must be plain, avx2 or avx512, got avx1024"
    )


@pytest.mark.parametrize("code", [ONE_CALL, ONE_SELECTION])
def test_a_set_that_the_machine_lacks_is_an_error_that_names_what_it_has(code):
    lacking = [name for name in SETS if name not in capabilities()]
    if not lacking:
        pytest.skip("this machine has every set")
    done = _run(code, lacking[-1])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ValueError: FEDKERNELS_CPU_CAPABILITY={lacking[-1]}: "
        f"this processor has only {capabilities()[-1]}"
    )


def test_the_forced_set_is_the_one_that_runs():
    code = "import fedkernels._host as host; print(host.capability())"
    for name in capabilities():
        done = _run("import torch;" + code, name)
        assert done.stdout.strip() == name, done.stderr
