"""`make cuda-check`: the rehearsal of setup.py's CUDA branch, and what it reads off a build."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cuda_host import rehearse
from tests.cuda_host.rehearse import Figures, Rehearsal

ROOT = Path(__file__).resolve().parents[2]

PTXAS = """
[1/1] nvcc -Xptxas -v ...
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10fedkernels1fIfLi128EEEvPf' for 'sm_90'
ptxas info    : Function properties for _ZN10fedkernels1fIfLi128EEEvPf
    48 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN10fedkernels1gEv' for 'sm_80'
ptxas info    : Function properties for _ZN10fedkernels1gEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 352 bytes cmem[0]
"""


@pytest.fixture
def spilling() -> Rehearsal:
    return Rehearsal("13.0", "8.0;9.0", [], {"f": {"sm_90": Figures(255, 48, 12, 16, 1024)}})


def test_the_figures_of_every_kernel_are_read():
    names = ("f<float, 128>", "g")
    if shutil.which("c++filt") is None:
        names = ("_ZN10fedkernels1fIfLi128EEEvPf", "_ZN10fedkernels1gEv")
    assert rehearse.parse_ptxas(PTXAS) == {
        names[0]: {"sm_90": Figures(255, 48, 12, 16, 1024)},
        names[1]: {"sm_80": Figures(12, 0, 0, 0, 0)},
    }


@pytest.mark.parametrize(
    ("record", "problems", "notes"),
    [
        ({"nvcc": "13.0", "kernels": {}}, 1, 1),
        ({"nvcc": "13.0", "kernels": {"f": {"sm_90": [255, 0, 0, 0, 0]}}}, 1, 0),
        ({"nvcc": "13.0", "kernels": {"f": {"sm_90": [200, 48, 12, 16, 1024]}}}, 0, 1),
        ({"nvcc": "12.8", "kernels": {}}, 0, 3),
    ],
)
def test_spills_above_the_record_fail(spilling, record, problems, notes):
    rehearse.compare(spilling, record)
    assert len(spilling.problems) == problems
    # What does not fail is shown.
    assert len(spilling.notes) == notes


def test_names_are_those_of_the_source():
    assert rehearse.short_name("void fedkernels::f<float, (int)128>(float const*)") == (
        "f<float, 128>"
    )
    assert rehearse.short_name("fedkernels::(anonymous namespace)::g()") == "g"


def test_every_kernel_says_how_many_threads_it_is_for():
    """Without the bound ptxas may take more registers than a block of that size can have, which
    only the launch on a GPU would show."""
    for path in [*ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/**/*.cuh")]:
        for kernel in re.findall(r"__global__[^(]*\w+ *\(", path.read_text()):
            assert "__launch_bounds__" in kernel, f"{path.name}: {kernel}"


@pytest.mark.skipif(rehearse.cuda_home() is None, reason="no nvcc here")
def test_the_cuda_branch_of_setup_py(tmp_path):
    # The smallest of the architectures; `make cuda-check` takes three times as long for all.
    result = rehearse.rehearse(tmp_path / "copy", architectures="8.0")
    rehearse.compare(result, json.loads(rehearse.RECORD.read_text()))
    assert result.problems == []
    assert "fedkernels_rehearsal::row_sum" in result.ops
    assert result.architectures == "8.0" and set(result.figures["exchange"]) == {"sm_80"}
