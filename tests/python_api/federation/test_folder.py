"""What the runner stands on: a package that loads quickly, folders that are swapped whole."""

from __future__ import annotations

import pytest

import python_api
from python_api import InputError


def visible(path):
    return sorted(child.name for child in path.iterdir())


def test_importing_the_package_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, python_api; print([m for m in ('torch','rich','numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("system_call", [True, False])
def test_an_exchange_swaps_two_folders(tmp_path, monkeypatch, system_call):
    import ctypes
    import types

    from python_api.run import folder

    if not system_call:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: types.SimpleNamespace())
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    folder.exchange(tmp_path / "new", tmp_path / "old")
    assert visible(tmp_path) == ["new", "old"]
    assert visible(tmp_path / "old") == ["new"] and visible(tmp_path / "new") == ["old"]
    folder.exchange(tmp_path / "new", tmp_path / "fresh")
    assert visible(tmp_path) == ["fresh", "old"]


def test_bad_input_to_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        python_api.run(tmp_path / "missing.toml", progress=False)
    with pytest.raises(InputError):
        python_api.run({"algorithm": "no such"}, progress=False)
    with pytest.raises(InputError):
        python_api.run("h2tune", overrides={"h2tune.middle_rnak": 4}, progress=False)
    assert visible(tmp_path) == []
