"""`sweep`: a config over seeds and rows, into one resumable folder.

grid.toml     what was asked for          rows.jsonl   a line per run and party
table.md      written after every run     figure.png   at the end
runs/<row>-<seed>/                        the run folders, without reports
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_api.errors import InputError
from python_api.progress import Progress, clock
from python_api.run.folder import write_text
from python_api.run.interrupt import Interrupted, StopOnInterrupt
from python_api.sweep.collate import Summary, collate, values
from python_api.sweep.figure import write_figure
from python_api.sweep.grid import Grid, load_grid
from python_api.sweep.plan import Job, Plan, Source, make_plan
from python_api.sweep.records import (
    Line,
    append_lines,
    current_lines,
    finished,
    mend,
)
from python_api.sweep.table import markdown
from python_api.sweep.workers import Pool, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Sweep", "default_folder", "run_plans", "sweep"]

Say = Callable[[str], None]
STOPPING = "stopping after the steps in hand; press Ctrl-C again to stop at once"


@dataclass
class Sweep:
    """A sweep's folder and what is recorded there, by row and seed."""

    path: Path
    grid: Grid
    lines: dict[tuple[str, int], list[Line]] = field(default_factory=dict)

    @property
    def summaries(self) -> list[Summary]:
        """A summary per row of the grid: means, paired differences, cost."""
        return collate(self.lines, self.grid)

    @property
    def table(self) -> str:
        """The markdown of `table.md`."""
        return markdown(self.lines, self.grid)

    @property
    def failed(self) -> list[Line]:
        """The lines of the runs that failed."""
        return [own[0] for own in self.lines.values() if own[0]["status"] == "failed"]


def sweep(
    source: Source,
    grid: Grid | str | Path | Mapping[str, Any],
    *,
    out: Path | str | None = None,
    jobs: int = 1,
    overrides: Mapping[str, Any] | None = None,
    say: Say | None = None,
) -> Sweep:
    """Runs `source` for every row and seed of `grid`, and writes the table of their differences.

    source: a config, as `run` takes it. grid: a TOML file, a dict like one, or a `Grid`.
    out: the folder, `runs/sweep-<grid's name>` by default. Runs that it holds already, of the same
        config and data, are not run again; failed ones are.
    jobs: runs at a time, each in a process of its own with its share of the cores; 1: in this one.
    overrides: keys laid over the config below every row's own.
    say: takes a line per finished run; None says nothing.

    A run that fails is recorded and stops no other.

    Errors: `InputError` for whatever is wrong with the grid, with a row or with the data, before
    the first run starts; `Interrupted` after Ctrl-C: the same call goes on from there.
    """
    out = default_folder(grid) if out is None else Path(out)
    grid = grid if isinstance(grid, Grid) else load_grid(grid)
    if jobs < 1:
        raise InputError(f"jobs: {jobs}; expected 1 or more")
    check_folder(out)
    plan = make_plan(source, grid, out, overrides=overrides)
    _look(plan)
    (done,) = run_plans([plan], jobs=jobs, say=say)
    return done


def default_folder(grid: object) -> Path:
    """`runs/sweep-<name of the file>`."""
    name = f"sweep-{Path(grid).stem}" if isinstance(grid, str | Path) else "sweep"
    return Path("runs") / name


def check_folder(path: Path) -> None:
    """`InputError` if something other than a sweep lies at `path`. Writes nothing."""
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not (path / "grid.toml").is_file()):
        raise InputError(f"out: {path} exists and is no sweep; expected a new folder or a sweep's")


def run_plans(
    plans: Sequence[Plan],
    *,
    jobs: int = 1,
    say: Say | None = None,
    after: Callable[[Sweep], None] | None = None,
) -> list[Sweep]:
    """Runs what is missing of several sweeps through one set of processes.

    after: called with a sweep whenever a run of it is recorded, and once for each at the end.

    Errors: as `sweep`; a folder that another process sweeps into is an `InputError`.
    """
    tell = say or (lambda line: None)
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(_locked(plan.path))
            _write_grid(plan)
            mend(plan.path)
        sweeps = {id(p): Sweep(p.path, p.grid, current_lines(p)) for p in plans}
        tasks: list[Task] = []
        owners: dict[Path, Sweep] = {}
        for plan in plans:
            ready = finished(sweeps[id(plan)].lines)
            for job in plan:
                if (job.row, job.seed) not in ready:
                    tasks.append((job, plan.grid))
                    owners[job.folder] = sweeps[id(plan)]
        # seed by seed through all of them: a sweep that is cut short has pairs everywhere
        tasks.sort(key=lambda task: task[1].seeds.index(task[0].seed))
        total = sum(len(plan.jobs) for plan in plans)
        if len(tasks) < total:
            tell(f"{total - len(tasks)} of {total} runs are there already")
        watch = _Watch(tell, [job for job, _ in tasks], total, jobs)
        for made in sweeps.values():
            watch.known(made)
            _write(made)
        interrupt = StopOnInterrupt(lambda: Progress().notice(STOPPING))
        try:
            with interrupt, Pool(min(jobs, max(1, len(tasks)))) as pool:
                for job, lines in pool.run(tasks, lambda: interrupt.requested):
                    made = owners[job.folder]
                    append_lines(made.path, lines)
                    made.lines[job.row, job.seed] = lines
                    _write(made)
                    watch.done(job, lines, made.grid)
                    if after is not None:
                        after(made)
        except KeyboardInterrupt as stop:
            ready_now = sum(len(finished(made.lines)) for made in sweeps.values())
            raise Interrupted(
                f"interrupted; {ready_now} of {total} runs are done, the same command goes on",
                path=plans[0].path,
            ) from stop
        finally:
            for made in sweeps.values():
                write_figure(made.path / "figure.png", made.summaries, made.grid)
    if after is not None:
        for made in sweeps.values():
            after(made)
    return list(sweeps.values())


def _look(plan: Plan) -> None:
    """Whatever is wrong with a row's data or models, before anything is written."""
    from python_api.check import preflight

    ready = finished(current_lines(plan))
    for row, config in plan.configs.items():
        if all((row, seed) in ready for seed in plan.grid.seeds):
            continue
        try:
            preflight(config, here=True)
        except InputError as error:
            raise InputError(f"row {row}: {error}") from error


def _write(made: Sweep) -> None:
    write_text(made.path / "table.md", made.table)


def _write_grid(plan: Plan) -> None:
    import tomli_w

    grid = plan.grid
    values: dict[str, Any] = {
        "seed": list(grid.seeds),
        "metric": grid.metric,
        "split": grid.split,
        "party": list(grid.party),
        "row": [{"name": row.name, "set": dict(row.set)} for row in grid.rows],
    }
    write_text(plan.path / "grid.toml", tomli_w.dumps(values))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise InputError(f"out: {folder}: another process sweeps into it; expected none") from error


class _Watch:
    """A line per finished run, with the time that the rest will take."""

    def __init__(self, tell: Say, waiting: list[Job], total: int, jobs: int) -> None:
        self._tell, self._jobs = tell, jobs
        self._waiting = {job.folder: job.row for job in waiting}
        self._total = total
        self._seconds: dict[str, list[float]] = {}
        self._warned: set[str] = set()
        self._began = time.perf_counter()

    def known(self, made: Sweep) -> None:
        for (row, _), own in made.lines.items():
            if "seconds" in own[0]:
                self._seconds.setdefault(row, []).append(own[0]["seconds"])

    def done(self, job: Job, lines: list[Line], grid: Grid) -> None:
        self._waiting.pop(job.folder, None)
        number = self._total - len(self._waiting)
        if lines[0]["status"] == "failed":
            what = f"failed: {lines[0]['reason']}"
        else:
            self._seconds.setdefault(job.row, []).append(lines[0]["seconds"])
            own = values(lines, grid)
            what = "  ".join(f"{party} {value:.3f}" for (_, party), value in own.items())
            what += f"  {lines[0]['seconds']:.1f} s"
            if not own:
                self._no_metric(lines, grid)
        left = self._left()
        told = f"  {clock(left)} left" if left is not None and self._waiting else ""
        self._tell(f"{number}/{self._total}  {job.row}  seed {job.seed}  {what.strip()}{told}")

    def _left(self) -> float | None:
        means = {row: sum(own) / len(own) for row, own in self._seconds.items()}
        if not means:
            return None
        common = sum(means.values()) / len(means)
        return sum(means.get(row, common) for row in self._waiting.values()) / self._jobs

    def _no_metric(self, lines: list[Line], grid: Grid) -> None:
        key = f"{grid.split}/{grid.metric}"
        if key in self._warned:
            return
        self._warned.add(key)
        chosen = [line for line in lines if not grid.party or line["party"] in grid.party]
        names = sorted({n for line in chosen or lines for n in line["metrics"].get(grid.split, {})})
        self._tell(
            f"warning: {lines[0]['row']} records no {grid.metric} on the {grid.split} split"
            + (f" for {', '.join(grid.party)}" if grid.party else "")
            + f"; it records {', '.join(names) or 'none there'}"
        )
