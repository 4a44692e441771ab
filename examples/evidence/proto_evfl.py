"""What each part of Proto-EVFL brings: settings times rows times seeds, one command.

    make evidence-proto-evfl            # or: python -m examples.evidence.proto_evfl --jobs 2
    python -m examples.evidence.proto_evfl --quick
    python -m examples.evidence.proto_evfl --fresh --rows proto_evfl "local = linear"

It stands among the examples, not the benchmarks: it is a recipe over the public sweep, to be copied
for one's own data, and neither times kernels nor is installed.

OUT holds a sweep per setting, tables.md (a table per group of settings, written every two minutes),
rows.jsonl (a line per run) and figures. A stopped run goes on where it was; --fresh takes ten other
seeds into a folder of its own, for a row that was chosen on the first ten. The credit tables are
read from the folder `credit` (guest.csv, host.csv) below FEDKERNELS_DATA.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.evidence.gate_figure import gate_line, gates, write_gate_figure
from examples.evidence.proto_evfl_settings import METHOD, only, settings
from examples.evidence.setting import Setting, group_table, slim
from python_api.errors import InputError
from python_api.progress import clock
from python_api.sweep import Plan, Sweep, load_grid, make_plan, run_plans
from python_api.sweep.records import current_lines, finished
from python_api.sweep.workers import cores

__all__ = ["chosen", "projected", "run", "write_results"]

SEEDS, FRESH, FEW = range(10), range(10, 20), range(2)
QUICK = ("digits2-10-A", "digits2-10-B", "unseen-10-B")


def chosen(found: Sequence[Setting], args: argparse.Namespace) -> list[Setting]:
    """The settings and rows that were asked for.

    Errors: `InputError` for a name that no setting, or no row of any of them, has.
    """
    names = args.settings or (QUICK if args.quick else [setting.name for setting in found])
    for name in names:
        if name not in {setting.name for setting in found}:
            known = ", ".join(setting.name for setting in found)
            raise InputError(f"--settings {name}: no such setting; expected some of {known}")
    picked = [setting for setting in found if setting.name in names]
    if args.more is not None:
        more = load_grid({"seed": [0], "row": _more(args.more)}).rows
        picked = [replace(setting, rows=(*setting.rows, *more)) for setting in picked]
    rows = args.rows or ([METHOD.name] if args.fresh else None)
    if rows is None:
        return picked
    known_rows = dict.fromkeys(row.name for setting in picked for row in setting.rows)
    for name in rows:
        if name not in known_rows:
            raise InputError(
                f"--rows {name}: no such row; expected some of {', '.join(known_rows)}"
            )
    return [only(setting, rows) for setting in picked]


def _more(path: Path) -> list[dict]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get("row", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"--more {path}: {error}; expected a TOML file of [[row]] tables"
        ) from error


def projected(plans: Sequence[tuple[Setting, Plan]], jobs: int) -> tuple[int, float]:
    """The runs that are missing, and the seconds that they will take.

    A row of which runs are recorded takes their mean; the others what their setting says.
    """
    count, seconds = 0, 0.0
    for setting, plan in plans:
        lines = current_lines(plan)
        ready = finished(lines)
        took: dict[str, list[float]] = {}
        for row, seed in ready:
            took.setdefault(row, []).append(lines[row, seed][0]["seconds"])
        for job in plan:
            if (job.row, job.seed) not in ready:
                own = took.get(job.row)
                count += 1
                seconds += sum(own) / len(own) if own else setting.seconds
    return count, seconds / jobs


def write_results(out: Path, found: Sequence[Setting], sweeps: dict[str, Sweep]) -> str:
    """tables.md and rows.jsonl of what is there; returns the tables."""
    parts = []
    for group in dict.fromkeys(setting.group for setting in found):
        members = [setting for setting in found if setting.group == group]
        parts.append(group_table(members, sweeps))
    text = "\n".join(parts)
    (out / "tables.md").write_text(text, encoding="utf-8")
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for setting in found:
            for _, own in sorted(sweeps[setting.name].lines.items(), key=lambda item: item[0][1]):
                if (line := slim(own, setting)) is not None:
                    kept = {key: line[key] for key in line if key not in ("before", "status")}
                    file.write(json.dumps(kept) + "\n")
    return text


def run(args: argparse.Namespace) -> int:
    """Runs what is missing; 1 if a run failed."""
    out = args.out / "fresh" if args.fresh else args.out / "quick" if args.quick else args.out
    seeds = FRESH if args.fresh else FEW if args.quick else SEEDS
    found, absent = settings(args.out.absolute() / "tables")
    for line in absent:
        print(line)
    found = chosen(found, args)
    plans = [
        make_plan(
            setting.source,
            setting.grid(seeds[: args.seeds]),
            out / setting.name,
            keep_folders=setting.keep_folders,
        )
        for setting in found
    ]
    count, seconds = projected(list(zip(found, plans, strict=True)), args.jobs)
    print(f"{count} runs in {len(plans)} settings, about {clock(seconds)} with {args.jobs} jobs")
    if args.projection:
        return 0
    last = 0.0
    sweeps = {
        setting.name: Sweep(plan.path, plan.grid, current_lines(plan))
        for setting, plan in zip(found, plans, strict=True)
    }

    def after(done: Sweep) -> None:
        nonlocal last
        sweeps[done.path.name] = done
        if time.monotonic() - last > 120:
            last = time.monotonic()
            write_results(out, found, sweeps)

    try:
        run_plans(plans, jobs=args.jobs, say=_say, after=after)
    finally:
        if out.is_dir():
            print(write_results(out, found, sweeps))
    for setting in found:
        if setting.keep_folders:
            _gates(out, setting, sweeps[setting.name])
    failed = [line for done in sweeps.values() for line in done.failed]
    for line in failed:
        print(f"failed: {line['row']}, seed {line['seed']}: {line['reason']}", file=sys.stderr)
    print(f"tables: {out / 'tables.md'}\nrows: {out / 'rows.jsonl'}")
    return 1 if failed else 0


def _gates(out: Path, setting: Setting, done: Sweep) -> None:
    folders = [done.path / "runs" / f"{METHOD.folder}-{seed}" for seed in done.grid.seeds]
    rounds, weights = gates([folder for folder in folders if (folder / "status.json").is_file()])
    if weights:
        figure = out / "figures" / f"{setting.name}-gate.png"
        write_gate_figure(figure, rounds, weights)
        line = gate_line(weights, "noise")
        with (out / "tables.md").open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
        print(f"{line}\nfigure: {figure}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-proto-evfl"))
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time")
    parser.add_argument("--settings", nargs="+", help="some of the settings")
    parser.add_argument("--rows", nargs="+", help="some of the rows, beside the first")
    parser.add_argument("--more", type=Path, help="TOML with further [[row]] tables")
    parser.add_argument("--seeds", type=int, help="so many of the seeds")
    parser.add_argument("--quick", action="store_true", help="three settings, two seeds")
    parser.add_argument("--fresh", action="store_true", help="seeds 10 to 19")
    parser.add_argument("--projection", action="store_true", help="print the time and end")
    return parser.parse_args(arguments)


def main() -> int:
    try:
        return run(parse())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(stop or "interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
