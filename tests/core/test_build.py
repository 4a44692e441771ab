"""setup.py: what a build leaves behind when it works, fails, or is not wanted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from fedkernels import _extension

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path):
    """setup.py in a folder of its own, with sources that do not compile and an old binary."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/host.cpp").write_text("#error this file does not compile\n")
    package = tmp_path / "fedkernels"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.0"\n')
    (package / "_C.abi3.so").write_bytes(b"of an earlier build")
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FEDKERNELS_")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def outcome(folder: Path) -> dict[str, object]:
    return json.loads((folder / "fedkernels/_build.json").read_text())


def test_a_failed_build_is_pure_python_with_a_reason(project):
    result = build(project)
    assert result.returncode == 0, result.stderr
    assert outcome(project)["built"] == []
    assert str(outcome(project)["reason"]).startswith("the build failed: ")
    assert not list(project.glob("fedkernels/*.so"))
    assert "installing as pure Python" in result.stderr


def test_a_failed_build_fails_where_it_is_required(project):
    assert build(project, FEDKERNELS_REQUIRE_EXT="1").returncode != 0


def test_no_extension_is_built_where_none_is_wanted(project):
    result = build(project, FEDKERNELS_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    assert "FEDKERNELS_NO_EXT=1 was set" in str(outcome(project)["reason"])
    assert not list(project.glob("fedkernels/*.so"))


def test_wanting_none_and_requiring_one_contradict(project):
    result = build(project, FEDKERNELS_NO_EXT="1", FEDKERNELS_REQUIRE_EXT="1")
    assert result.returncode != 0
    assert "FEDKERNELS_REQUIRE_EXT=1, but FEDKERNELS_NO_EXT=1" in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it was never built here"),
        ('{"built": [], "reason": "the build failed: no g++"}', "the build failed: no g++"),
        ('{"built": ["fedkernels._C"], "reason": null}', "is gone"),
        ("{", "cannot be read"),
    ],
)
def test_the_recorded_reason_is_given(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "_build.json").write_text(content)
    assert reason in str(_extension._load())


def test_a_library_that_does_not_load_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    (tmp_path / "_C.abi3.so").write_bytes(b"no library")
    reason = str(_extension._load())
    assert reason.startswith("_C.abi3.so cannot be loaded: ")
    assert "\n" not in reason


@pytest.mark.skipif(not _extension.is_built(), reason=f"compiled ops: {_extension.why_not_built()}")
def test_the_binaries_name_no_path_of_the_machine():
    for library in (ROOT / "fedkernels").glob("*.so"):
        assert str(ROOT).encode() not in library.read_bytes(), library.name


# A torch that says it is a CUDA build, with a toolkit that compiles nothing.
PRETEND = """
import runpy, sys, torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = "13.0", sys.argv[1]
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture
def with_cuda(project):
    """The project with sources that compile, a CUDA kernel, and a broken nvcc."""
    (project / "csrc/host.cpp").write_text(
        "#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_host, m) {}\n"
    )
    (project / "csrc/ops.cpp").write_text("int fedkernels_test = 1;\n")
    (project / "csrc/kernel.cu").write_text("__global__ void kernel() {}\n")
    (project / "toolkit/bin").mkdir(parents=True)
    nvcc = project / "toolkit/bin/nvcc"
    nvcc.write_text('#!/bin/sh\necho "release 13.0, V13.0.88"\ntest "$1" = --version\n')
    nvcc.chmod(0o755)
    return project


def build_with_cuda(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FEDKERNELS_")}
    return subprocess.run(
        [sys.executable, "-c", PRETEND, str(folder / "toolkit")],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def test_a_toolkit_that_fails_leaves_the_kernels_for_the_cpu(with_cuda):
    result = build_with_cuda(with_cuda)
    assert result.returncode == 0, result.stderr
    assert outcome(with_cuda)["built"] == ["fedkernels._C", "fedkernels._host"]
    assert outcome(with_cuda)["cuda"] is None
    assert str(outcome(with_cuda)["cuda_reason"]).startswith("the build failed: ")
    assert "no CUDA kernels, the build failed" in result.stderr


@pytest.mark.parametrize("name", ["FEDKERNELS_CUDA", "FEDKERNELS_REQUIRE_EXT"])
def test_a_toolkit_that_fails_fails_where_it_is_required(with_cuda, name):
    assert build_with_cuda(with_cuda, **{name: "1"}).returncode != 0


def test_cuda_can_be_left_out_and_the_outcome_says_so(with_cuda):
    result = build_with_cuda(with_cuda, FEDKERNELS_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert outcome(with_cuda)["built"] == ["fedkernels._C", "fedkernels._host"]
    assert "FEDKERNELS_CUDA=0 was set" in str(outcome(with_cuda)["cuda_reason"])


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_cuda_without_cuda_contradicts(with_cuda):
    result = build(with_cuda, FEDKERNELS_CUDA="1")
    assert result.returncode != 0
    assert "FEDKERNELS_CUDA=1, but torch" in result.stderr


def test_an_unknown_wish_is_refused(project):
    result = build(project, FEDKERNELS_CUDA="yes")
    assert result.returncode != 0
    assert "FEDKERNELS_CUDA must be 0, 1 or auto, got yes" in result.stderr


def test_a_source_distribution_holds_the_kernels_that_are_not_built_here(project):
    (project / "csrc/kernel.cu").write_text("\n")
    (project / "csrc/kernel.cuh").write_text("\n")
    (project / "fedkernels_benchmarks").mkdir()  # pyproject.toml says that it is `benchmarks`
    result = subprocess.run(
        [sys.executable, "setup.py", "sdist"], cwd=project, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (archive,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {Path(name).name for name in opened.getnames()}
    assert {"kernel.cu", "kernel.cuh", "host.cpp"} <= names
