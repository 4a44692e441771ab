"""`environment.json`: what a reader needs to know in order to get the same result again."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_api.federation.bus import Party
    from python_api.federation.manifest import Manifest

__all__ = ["environment"]

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scikit-learn",
    "safetensors",
    "msgpack",
    "fedkernels",
)


def environment(manifest: Manifest, parties: Sequence[Party], *, seed: int) -> dict[str, object]:
    """Versions, machine, threads, the variables that change results, and the manifest.

    `sizes` holds what each party declared for the manifest's shapes, `rows` how many rows each of
    its splits has.
    """
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": [
            torch.cuda.get_device_name(index)
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FEDKERNELS_") or name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        },
        "seed": seed,
        "manifest": manifest.rows(),
        "sizes": {party.name: dict(party.sizes) for party in parties},
        "rows": {party.name: dict(party.rows) for party in parties if hasattr(party, "rows")},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.split(":", 1)[1] for line in file if line.startswith("model name"))
            return next(names, "").strip()
    except OSError:
        return platform.processor()
