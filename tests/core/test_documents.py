"""The documents hold: paths exist, code blocks run, doctests pass, the changelog is current.

A block that is to run is opened by ```python runnable; blocks of one file run one after another and
share their names.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import fedkernels
from fedkernels._extension import is_built, why_not_built

ROOT = Path(__file__).resolve().parents[2]
TOP = ("csrc", "fedkernels", "python_api", "benchmarks", "tests", "docs", "examples", ".ci")
# What a build, a run or a later step writes: named in documents, not in the repository.
WRITTEN = re.compile(r"\.so$|_build\.json$|^benchmarks/results/")
BLOCK = re.compile(r"^```python runnable\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    hidden = {".venv", "build", "runs", "node_modules"}
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(p in hidden or p.startswith(".") for p in path.relative_to(ROOT).parts)
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing_paths(text: str, folder: Path) -> list[str]:
    """Paths that the text names in backticks or links and that do not exist."""
    missing = []
    for token in re.findall(r"`([^`\n]+)`", text):
        path = token.strip().split(":")[0].split("#")[0].rstrip("/")
        placeholder = re.search(r"[<>*{}\[\]$ ]|\.\.\.|NNNN", path)
        if path.split("/")[0] not in TOP or "/" not in path or placeholder or WRITTEN.search(path):
            continue
        if not (ROOT / path).exists():
            missing.append(path)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = link.split("#")[0]
        elsewhere = not target or "://" in target or target.startswith("mailto:")
        if not elsewhere and not (folder / target).exists():
            missing.append(link)
    return missing


@pytest.mark.parametrize("path", documents(), ids=relative)
def test_every_path_that_a_document_names_exists(path):
    assert missing_paths(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_path_that_does_not_exist_is_found():
    assert missing_paths("see `fedkernels/nothing.py`", ROOT) == ["fedkernels/nothing.py"]
    assert missing_paths("see [this](docs/nothing.md#top)", ROOT) == ["docs/nothing.md#top"]
    assert missing_paths("`csrc/<family>/x.cpp` `setup.py` `a/b` `tests/core/`", ROOT) == []


@pytest.mark.parametrize(
    "path",
    [path for path in documents() if BLOCK.search(path.read_text(encoding="utf-8"))],
    ids=relative,
)
def test_the_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    for block in BLOCK.finditer(path.read_text(encoding="utf-8")):
        line = path.read_text(encoding="utf-8")[: block.start()].count("\n") + 1
        # Empty lines in front, so that a traceback names the line of the document.
        exec(compile("\n" * line + block.group(1), relative(path), "exec"), names)


# What has no reference backend.
COMPILED_ONLY = ("fedkernels.transport.emd",)


def modules_with_doctests() -> list[str]:
    found = []
    for package in ("fedkernels", "python_api"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules_with_doctests())
def test_doctests(name, tmp_path, monkeypatch):
    if name in COMPILED_ONLY and not is_built():
        pytest.skip(f"not built: {why_not_built()}")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_function_has_an_example():
    without = [
        name
        for name in fedkernels.__all__
        if not name.endswith("Unavailable")
        and ">>> " not in (getattr(fedkernels, name).__doc__ or "")
    ]
    assert without == []


def test_no_promised_table_is_empty():
    for path in ("README.md", "docs/kernels.md"):
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"<!-- (\w+:\w+) -->", text):
            block = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
            assert block.strip(), f"{path}: the block {name} is empty"


def test_the_changelog_names_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(fedkernels.__version__)}\b", text, re.MULTILINE)


def test_no_file_loads_pickles_or_evaluates_text():
    banned = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec"}
    found = []
    for package in ("fedkernels", "python_api", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in banned:
                    found.append(f"{relative(path)}:{node.lineno} {ast.unparse(node.func)}")
    assert found == []
