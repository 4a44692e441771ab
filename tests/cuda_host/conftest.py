"""Test programs, compiled once a session and variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda_host.build import Program, why_no_compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The tests of a file, and of files with one SOURCE, share programs: in one process, so that
    # each is compiled once.
    for item in items:
        if "programs" in getattr(item, "fixturenames", ()):
            source = getattr(item.module, "SOURCE", item.path)
            item.add_marker(pytest.mark.xdist_group(source.stem))


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Callable[..., Program]:
    """`programs(source, variant)`: compiled at the first call; skips where that is impossible."""
    folder = tmp_path_factory.mktemp("cuda_host")
    built: dict[tuple[Path, str], Program] = {}

    def program(source: Path, variant: str = "plain") -> Program:
        reason = why_no_compiler(variant)
        if reason is not None:
            pytest.skip(reason)
        if (source, variant) not in built:
            built[source, variant] = Program(source, variant, folder)
        return built[source, variant]

    return program
