"""What `import fedkernels` loads, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fedkernels

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_touches_neither_cuda_nor_triton_nor_transformers():
    out = run(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fedkernels\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'triton', 'transformers', 'peft', 'python_api', 'matplotlib'}),\n"
        "      torch.cuda.is_initialized())"
    )
    assert out.split("\n")[0] == "[] False"


def test_import_works_where_optional_packages_are_blocked():
    out = run(
        "import sys\n"
        "for name in ('triton', 'transformers', 'peft', 'pydantic', 'rich', 'typer'):\n"
        "    sys.modules[name] = None\n"
        "import torch, fedkernels, fedkernels.info, fedkernels.testing\n"
        "x = torch.ones(1, 2)\n"
        "y = fedkernels.triple_lora_delta(x, x, None, torch.ones(1, 1), backend='reference')\n"
        "print(y.item())"
    )
    assert out.strip() == "2.0"


def test_star_import_resolves_every_public_name():
    names: dict[str, object] = {}
    exec("from fedkernels import *", names)
    assert set(fedkernels.__all__) <= set(names)
    assert len(fedkernels.__all__) == len(set(fedkernels.__all__))


def test_star_import_of_the_testing_kit():
    names: dict[str, object] = {}
    exec("from fedkernels.testing import *", names)
    assert set(fedkernels.testing.__all__) <= set(names)


def test_the_environment_decides_auto_and_the_log_names_the_choice():
    out = run(
        "import logging, sys, torch, fedkernels\n"
        "logging.getLogger('fedkernels').handlers = [logging.StreamHandler(sys.stdout)]\n"
        "x = torch.ones(1, 2)\n"
        "for _ in range(3):\n"
        "    fedkernels.triple_lora_delta(x, x, None, torch.ones(1, 1))\n",
        FEDKERNELS_BACKEND="reference",
        FEDKERNELS_LOG="1",
    )
    assert out.splitlines() == ["triple_lora_delta runs on reference"]


def test_the_log_is_silent_by_default():
    out = run(
        "import logging, sys, torch, fedkernels\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "x = torch.ones(1, 2)\n"
        "fedkernels.triple_lora_delta(x, x, None, torch.ones(1, 1))\n",
        FEDKERNELS_LOG="0",
    )
    assert "runs on" not in out
