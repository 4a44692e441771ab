"""On a GPU machine without network (`make test-gpu`) the libraries that some tests compare with may
be missing: those files are left out, and the report says so. CI has all of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

COMPARED_WITH = ("hypothesis", "ot", "sklearn")
_MISSING = [name for name in COMPARED_WITH if importlib.util.find_spec(name) is None]
_IMPORT = re.compile(rf"^(?:import|from) (?:{'|'.join(_MISSING) or '(?!)'})\b", re.MULTILINE)

collect_ignore = [
    str(path) for path in Path(__file__).parent.rglob("*.py") if _IMPORT.search(path.read_text())
]


def pytest_report_header() -> list[str]:
    left_out = ", ".join(Path(path).name for path in collect_ignore)
    return [f"not installed: {', '.join(_MISSING)}; left out: {left_out}"] if _MISSING else []
