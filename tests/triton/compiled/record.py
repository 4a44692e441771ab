"""Records registers and spills of every case under the installed Triton in figures.json:

python -m tests.triton.compiled.record
"""

from __future__ import annotations

import json
from pathlib import Path

import triton

from tests.triton.compiled.ahead import SHARED, compiled, launches
from tests.triton.compiled.cases import CASES, architectures


def main() -> None:
    path = Path(__file__).parent / "figures.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    mine: dict[str, dict[str, list[int]]] = {}
    for arch in SHARED:
        rows = mine.setdefault(f"sm_{arch}", {})
        for case, call in CASES.items():
            if arch not in architectures(case, SHARED):
                continue
            for launch in launches(call):
                found = compiled(launch, arch)
                key = f"{case} {found.name}"
                # One kernel may be launched with several sets of constants: the worst counts.
                before = rows.get(key, [0, 0])
                rows[key] = [max(before[0], found.registers), max(before[1], found.spills)]
                print(f"sm_{arch}", key, found, flush=True)
    figures[triton.__version__] = mine
    # A line for each kernel, so that a change of one is a change of one line.
    text = json.dumps(figures, indent=1)
    text = text.replace("[\n    ", "[").replace(",\n    ", ", ").replace("\n   ]", "]")
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
