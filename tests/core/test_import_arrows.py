"""The import arrows of docs/DESIGN.md, read off the sources.

python_api -> fedkernels (public names) -> <family>/api.py -> <family>/ops.py -> triton.py
                                                      \\-> reference.py

A folder of one of these names holds what the file would. Compiled code includes its own kind.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fedkernels

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_MODULES = {"fedkernels", "fedkernels.testing", "fedkernels.info", "fedkernels.peft"}
# What a family's file, or a file in its folder, must never import, by name.
FORBIDDEN_IN_FAMILY = {
    "reference": {"ops", "api", "triton", "autograd", "layer", "_extension", "_backend"},
    "triton": {"reference", "api", "layer", "_extension", "_backend"},
    "ops": {"reference", "api", "layer"},
}
# At module level, since `import fedkernels` needs torch and numpy alone.
CORE_PACKAGES = {"torch", "numpy", "fedkernels"}


def imports(source: str) -> list[tuple[str, tuple[str, ...], bool]]:
    """(module, names, at module level) of every import; names is empty for `import module`."""
    tree = ast.parse(source)
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside_functions
        if isinstance(node, ast.Import):
            found += [(alias.name, (), top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.append((module, tuple(alias.name for alias in node.names), top))
    return found


def faults_outside(source: str) -> list[str]:
    """What code above `fedkernels` (python_api) imports or touches that is not public."""
    faults = []
    for module, names, _ in imports(source):
        if module.split(".")[0] != "fedkernels":
            continue
        if module == "fedkernels":
            modules = {name for name in names if f"fedkernels.{name}" in PUBLIC_MODULES}
            private = set(names) - modules - set(fedkernels.__all__) - {"__version__"}
            faults += [f"from fedkernels import {name}" for name in sorted(private)]
        elif not any(
            module == m or module.startswith(f"{m}.") for m in PUBLIC_MODULES - {"fedkernels"}
        ):
            faults.append(f"import {module}")
    if "torch.ops.fedkernels" in source:
        faults.append("torch.ops.fedkernels")
    return faults


def faults_inside(source: str, stem: str) -> list[str]:
    """What a file `<family>/<stem>.py` imports against the arrows."""
    faults = []
    for module, names, _ in imports(source):
        parts = module.lstrip(".").split(".")
        root = "fedkernels" if module.startswith(".") else parts[0]
        if root in ("python_api", "benchmarks", "fedkernels_benchmarks", "tests"):
            faults.append(f"import {module}")
        # `from fedkernels.family import reference` and `from fedkernels.family.reference import f`.
        reached = set(parts) | (set(names) if root == "fedkernels" else set())
        if root == "fedkernels":
            wrong = reached & FORBIDDEN_IN_FAMILY.get(stem, set())
            faults += [f"{stem}.py imports {name}" for name in sorted(wrong)]
        if root == "triton" and stem != "triton":
            faults.append(f"{stem}.py imports triton itself")
    return faults


def role(path: Path) -> str:
    """A file's part in its family: the folder of that part, else its own name."""
    parts = {part.removeprefix("_") for part in path.relative_to(ROOT).parent.parts}
    folders = parts & set(FORBIDDEN_IN_FAMILY)
    if folders:
        (found,) = folders
        return found
    return path.stem


def faults_of_cpp(source: str, path: str) -> list[str]:
    """What a file below csrc includes that is not C++, a library's or its own family's."""
    family = path.split("/")[1]
    found = re.findall(r'^\s*#\s*include\s*"([^"]+)"', source, flags=re.MULTILINE)
    # cuda_host.h stands in for CUDA's own headers; a file right in csrc belongs to no family.
    allowed = {"common", "cuda_host.h"} | ({family} if path.count("/") > 1 else set())
    return [name for name in found if name.split("/")[0] not in allowed]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources("python_api"), ids=relative)
def test_python_api_uses_public_functions_only(path):
    assert faults_outside(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sources("fedkernels"), ids=relative)
def test_families_follow_the_arrows(path):
    assert faults_inside(path.read_text(encoding="utf-8"), role(path)) == []


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")),
    ids=relative,
)
def test_compiled_code_includes_its_own_family_only(path):
    source = path.read_text(encoding="utf-8")
    assert faults_of_cpp(source, relative(path)) == []
    assert "Python.h" not in source and "torch/extension.h" not in source


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("triple_lora/reference.py", "reference"),
        ("transport/reference/iterate.py", "reference"),
        ("transport/triton/points.py", "triton"),
        ("transport/ops/points.py", "ops"),
        ("transport/autograd.py", "autograd"),
        ("_triton/launching.py", "triton"),
    ],
)
def test_a_folder_is_held_like_the_file_of_its_name(path, expected):
    assert role(ROOT / "fedkernels" / path) == expected
    assert (ROOT / "fedkernels" / path).exists()


@pytest.mark.parametrize("path", sources("fedkernels"), ids=relative)
def test_only_core_packages_at_module_level(path):
    import sys

    allowed = CORE_PACKAGES | set(sys.stdlib_module_names)
    if role(path) in ("triton", "sklearn"):  # of a module that the package does not import itself
        allowed = allowed | {role(path)}
    found = {
        module.split(".")[0]
        for module, _, top in imports(path.read_text(encoding="utf-8"))
        if top and not module.startswith(".")
    }
    assert found <= allowed


def test_there_is_something_to_check():
    assert len(sources("python_api")) > 10
    assert ROOT / "fedkernels/triple_lora/reference.py" in sources("fedkernels")


@pytest.mark.parametrize(
    "source",
    [
        "from fedkernels.triple_lora import ops",
        "from fedkernels import _backend",
        "import fedkernels.triple_lora.reference",
        "def f():\n    from fedkernels._extension import is_built",
        "torch.ops.fedkernels.triple_lora_forward(x)",
    ],
)
def test_a_private_import_is_found(source):
    assert faults_outside(source)


@pytest.mark.parametrize(
    "source",
    [
        "from fedkernels import triple_lora_linear, testing",
        "from fedkernels.testing import interleave",
        "import fedkernels",
        "import fedkernels.info",
    ],
)
def test_a_public_import_is_let_through(source):
    assert faults_outside(source) == []


@pytest.mark.parametrize(
    ("stem", "source"),
    [
        ("reference", "from fedkernels.triple_lora import ops"),
        ("reference", "from fedkernels.triple_lora.autograd import triple_lora"),
        ("ops", "from fedkernels.triple_lora.reference import fold_middle"),
        ("triton", "from fedkernels.triple_lora import reference"),
        ("api", "from python_api.errors import InputError"),
        ("ops", "import triton"),
        ("reference", "from fedkernels.transport.triton.points import source_of"),
        ("triton", "from fedkernels.transport.reference.points import pairwise_cost"),
        ("ops", "from fedkernels.transport import reference"),
        ("triton", "from ..reference import points"),
    ],
)
def test_a_wrong_arrow_is_found(stem, source):
    assert faults_inside(source, stem)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("csrc/transport/points.h", '#include "triple_lora/triple_lora.h"'),
        ("csrc/common/product.h", '  #include "transport/points.h"'),
        ("csrc/host.cpp", '#include "transport/points.h"'),
    ],
)
def test_a_wrong_include_is_found(path, source):
    assert faults_of_cpp(source, path)
