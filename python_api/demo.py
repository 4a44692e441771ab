"""`fedkernels demo`: the algorithms on built-in data, kernel times, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.report.parts import Section
    from python_api.report.reading import RunData

__all__ = ["demo"]

ALGORITHMS = ("h2tune", "local", "proto_evfl", "vfl_masked")
FAMILY = "triple_lora"


def demo(
    out: str | Path = Path("runs", "demo"),
    *,
    overrides: Mapping[str, object] | None = None,
    on_tables: Mapping[str, object] | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Runs the demo and returns the path of its report.

    Writes a run folder in `out` for each of `ALGORITHMS`, the benchmark's rows
    ``out/bench.jsonl``, and ``out/report.html`` with all of them. An earlier demo in `out` is
    overwritten.

    Args:
        out: the demo's folder: a new one, an empty one, or that of an earlier demo.
        overrides: configuration keys for the runs that fine-tune, as ``--set`` takes them.
        on_tables: the same for the runs on tables.
        device: ``"cpu"`` or ``"cuda"``; the default is the configuration's own choice.
        say: takes each line that is meant for the person in front of the screen.

    Raises:
        InputError: `out` holds something else; nothing is written then.
        RunFailed: one of the runs failed; its folder tells why.
    """
    from python_api.config.settings import setting_of
    from python_api.report import write_report
    from python_api.run import run

    out = Path(out)
    _check_free(out)
    began = time.perf_counter()
    folders = []
    steps = len(ALGORITHMS) + 1
    for number, algorithm in enumerate(ALGORITHMS, start=1):
        say(f"[{number}/{steps}] {algorithm}: {_EXPLAINED[algorithm]}")
        folder = out / algorithm
        keys = on_tables if setting_of(algorithm, {}) == "vertical" else overrides
        run(algorithm, out=folder, overrides=keys, device=device, overwrite=True)
        folders.append(folder)
    say(f"[{steps}/{steps}] kernels: {FAMILY} against its peers, small sizes, float32")
    speed = _speed(out / "bench.jsonl", say)
    report = write_report(
        *reversed(folders), out=out / "report.html", extra=[speed], title="fedkernels demo"
    )
    for line in _summary(folders, report, seconds=time.perf_counter() - began):
        say(line)
    return report


_EXPLAINED = {
    "h2tune": "three parties with different models and tasks share a small middle matrix",
    "local": "the same parties, each alone, to compare with",
    "proto_evfl": "two parties hold the left and the right half of digits, few of them the same",
    "vfl_masked": "the same two, trained with absent halves masked, to compare with",
}


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    earlier = (out / ALGORITHMS[0] / "status.json").is_file() and not (out / "config.toml").exists()
    if not out.is_dir() or (any(out.iterdir()) and not earlier):
        raise InputError(
            f"out: {out} exists and is no demo; expected a new folder or that of an earlier demo"
        )


def _benchmarks() -> tuple[ModuleType, ModuleType]:
    """The benchmarks' `run` and `table`: as installed, else of the checkout this runs from."""
    for package in ("fedkernels_benchmarks", "benchmarks"):
        try:
            return import_module(f"{package}.run"), import_module(f"{package}.table")
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.split(".")[0] != package:
                raise
    raise InputError("benchmarks: the package is not installed; expected fedkernels_benchmarks")


def _speed(
    path: Path, say: Callable[[str], None], *, select: Callable[..., bool] | None = None
) -> Section:
    """Gates and times the kernels that `select` lets pass; the rows that passed go to `path`."""
    from python_api.report.speed import speed_section

    run, table = _benchmarks()
    path.unlink(missing_ok=True)
    rows = run.run_family(
        FAMILY,
        quick=True,
        out=path,
        select=select,
        progress=lambda line: say(f"      {line}"),
    )
    return speed_section(table.sections(rows))


def _summary(folders: Sequence[Path], report: Path, *, seconds: float) -> list[str]:
    """The headline per party, and what to type next."""
    from python_api.report.classes import active_party
    from python_api.report.formats import seconds_text
    from python_api.report.reading import read_run

    runs = [read_run(folder) for folder in folders]
    tuning = [run for run in runs if not run.vertical]
    lines = ["", "One seed, so no evidence of a difference."]
    lines.append("Accuracy on each party's own test data:")
    lines += _rows(tuning, tuning[0].parties)
    vertical = [run for run in runs if run.vertical]
    lines.append("Balanced accuracy on digits, both halves together:")
    lines += _rows(vertical, [active_party(vertical[0])])
    return [
        *lines,
        "",
        f"The demo took {seconds_text(seconds)}. Its report: {report}",
        "Next:",
        "  fedkernels config h2tune > mine.toml   # a commented configuration to start from",
        "  fedkernels check mine.toml             # all that can be wrong with it, in seconds",
        "  fedkernels run mine.toml               # ends with the path of its report",
        "  fedkernels config proto_evfl           # the same for parties that hold other columns",
    ]


def _rows(runs: Sequence[RunData], parties: Sequence[str]) -> list[str]:
    """The headline of every party, a column per run."""
    from python_api.report.formats import percent
    from python_api.report.numbers import headline

    names = "".join(f"{run.name:>12}" for run in runs)
    lines = [f"  {'party':<14}{'before':>9}{names}"]
    for party in parties:
        heads = [headline(run, party) for run in runs]
        values = "".join(f"{percent(head.last):>12}" for head in heads)
        lines.append(f"  {party:<14}{percent(heads[0].before):>9}{values}")
    return lines
