"""Where a row was measured: machine, versions, commit, and the bound that times are held to."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .peers import package_version

__all__ = ["Bound", "commit", "device_name", "machine_name", "measure_bound", "versions"]

CHECKOUT = Path(__file__).resolve().parent.parent


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the CPU's model and its number of cores. Never the host's name."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        model = found.group(1).strip() if found else model
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def machine_name(device: str = "cpu") -> str:
    """`device_name` as a file name: the stem of a results file."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def commit() -> str:
    """The checkout's commit, `-dirty` if code differs from it; `` for an installed package."""
    if not (CHECKOUT / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    code = ("csrc", "fedkernels", "benchmarks/*.py", "setup.py")
    dirty = "-dirty" if git("status", "--porcelain", "--", *code) else ""
    return git("rev-parse", "--short=12", "HEAD") + dirty


def versions() -> dict[str, str]:
    triton = package_version("triton")
    return {
        "torch": torch.__version__,
        "triton": "" if triton == "not installed" else triton,
        "cuda": torch.version.cuda or "",
    }


@dataclass(frozen=True)
class Bound:
    """What the platform itself reaches here: its product, its copy, its exponentials, a second."""

    flop_per_s: float
    byte_per_s: float
    exp_per_s: float = math.inf

    def seconds(self, flops: float, moved: float, exps: float = 0.0) -> float:
        """The least time for this much work: the slowest of the three roofs."""
        return max(flops / self.flop_per_s, moved / self.byte_per_s, exps / self.exp_per_s)

    def __str__(self) -> str:
        return (
            f"{self.flop_per_s / 1e9:.0f} GFLOP/s (the platform's product), "
            f"{self.byte_per_s / 1e9:.1f} GB/s (its copy), "
            f"{self.exp_per_s / 1e9:.2f} G exponentials/s (its own)"
        )


def measure_bound(dtype: torch.dtype, *, device: str = "cpu", size: int = 1024) -> Bound:
    """The platform's square product, a copy of 64 MiB, exponentials in the cache; best of three.

    For half types the better of the product in that dtype and in float32 counts: on a CPU without
    half arithmetic the library's half product is many times slower than float32. A kernel whose
    exponential is faster than the platform's may pass the last one.
    """

    def best(function: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    rates = []
    for candidate in {dtype, torch.float32}:
        n = size if candidate == torch.float32 else size // 2
        a = torch.randn(n, n, device=device).to(candidate)
        out = torch.empty_like(a)
        rates.append(2 * n**3 / best(lambda a=a, out=out: torch.mm(a, a, out=out)))
    source = torch.zeros(2**24, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    copied = best(lambda: target.copy_(source))
    # 32768 elements a thread: enough to be shared out, and within the second cache. A call is
    # short, so the best of many.
    exponents = torch.linspace(-16, 0, 2**15 * max(torch.get_num_threads(), 1), device=device)
    values = torch.empty_like(exponents)

    def exponentials(function: Callable[..., object]) -> float:
        return exponents.numel() / min(
            best(lambda: function(exponents, out=values)) for _ in range(20)
        )

    return Bound(max(rates), moved / copied, max(map(exponentials, (torch.exp, torch.exp2))))
