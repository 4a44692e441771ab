"""Fixtures of the model tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("FEDKERNELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
