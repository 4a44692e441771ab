"""`run`: a config in, a run folder out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from python_api.errors import RunFailed
from python_api.notices import notices
from python_api.progress import Progress, make_progress
from python_api.run.folder import RunFolder, check_free, default_path
from python_api.run.interrupt import Interrupted, StopOnInterrupt
from python_api.run.recorder import Recorder
from python_api.run.result import Run

if TYPE_CHECKING:
    from python_api.algorithms.base import Algorithm
    from python_api.config import RunConfig

__all__ = ["run", "run_algorithm"]

STOPPING = "stopping after the step in hand; press Ctrl-C again to stop at once"


def run(
    source: str | Path | dict,
    *,
    out: Path | str | None = None,
    overrides: Mapping[str, object] | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | str | Progress | None = None,
    report: bool = True,
    keep: Literal["all", "last"] = "all",
) -> Run:
    """Runs an algorithm by its name, a TOML file, or a dict of the same form.

    out: the run folder, `runs/<algorithm>-<time>` by default; it must not exist, unless
        `overwrite` is set and a run lies there.
    overrides: `{"party.shop.rank": 8, "rounds": 3}`, as `--set` on the command line.
    progress: None shows what fits the place (terminal, log, notebook); False shows nothing.
    report: False leaves out `report.html` and `figures/`; `fedkernels report` writes them later.
    keep: `"last"` keeps models and checkpoint of the last round only, so that many short runs do
        not wait for the disk; one that is stopped early then has none.

    Errors: `InputError` for a bad config or bad data, before anything is written; `RunFailed` if
    the run fails (status "failed", the folder stays); `Interrupted` after Ctrl-C (status
    "interrupted", the folder and its report can be read; `load` opens it).
    """
    from python_api.algorithms import make
    from python_api.config import load_config

    config = load_config(source, dict(overrides) if overrides else None, device=device)
    path = default_path(config.algorithm) if out is None else Path(out)
    check_free(path, overwrite=overwrite)
    return run_algorithm(
        make(config),
        config,
        path,
        overwrite=overwrite,
        progress=make_progress(progress),
        report=report,
        keep=keep,
    )


def run_algorithm(
    algorithm: Algorithm,
    config: RunConfig,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    dump: Callable[[RunConfig], str] | None = None,
    report: bool = True,
    keep: Literal["all", "last"] = "all",
) -> Run:
    """The part of `run` that starts from a made algorithm.

    dump: writes the config as TOML; `python_api.config.dump_config` unless it is given.
    """
    progress = make_progress(False) if progress is None else progress
    interrupt = StopOnInterrupt(lambda: progress.notice(STOPPING))
    if keep not in ("all", "last"):
        raise ValueError(f'keep must be "all" or "last", got {keep!r}')
    recorder = Recorder(
        progress,
        stop=lambda: interrupt.requested,
        rounds=config.rounds,
        keep_all=keep == "all",
    )
    try:
        with interrupt:
            progress.start(
                f"{config.algorithm}, seed {config.seed}",
                rounds=config.rounds,
                parties=len(config.parties),
            )
            folder = _run(algorithm, config, path, overwrite, recorder, progress, dump, report)
    finally:
        progress.stop()
    return Run(folder.path)


def _run(
    algorithm: Algorithm,
    config: RunConfig,
    path: Path,
    overwrite: bool,
    recorder: Recorder,
    progress: Progress,
    dump: Callable[[RunConfig], str] | None,
    report: bool,
) -> RunFolder:
    from python_api.config import ignored
    from python_api.federation.local import LocalFederation
    from python_api.run.environment import environment

    if dump is None:
        from python_api.config import dump_config

        dump = dump_config
    if (line := ignored(config)) is not None:
        recorder.log(line)
    # Data and models first: whatever is wrong with them shows before there is a folder.
    try:
        parties = algorithm.parties(recorder)
        manifest = algorithm.manifest()
        recorder.check_stop()
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped before the run began; nothing was written") from stop
    kept = parties if algorithm.server is None else [algorithm.server, *parties]
    told = {p.name: getattr(p, "rows", {}) for p in kept}
    slots = {p.name: p.model.slots for p in kept if hasattr(p, "model")}
    for line in notices(config, rows=told, slots=slots):
        recorder.log(f"warning: {line}")
    folder = RunFolder.create(
        path,
        config=dump(config),
        environment=environment(manifest, kept, seed=config.seed),
        algorithm=config.algorithm,
        rounds=config.rounds,
        overwrite=overwrite,
        began=recorder.began,
    )
    try:
        with log_to(folder, progress):
            recorder.attach(folder, kept)
            federation = LocalFederation(
                parties,
                manifest,
                traffic=folder.traffic,
                seed=config.seed,
                check=recorder.check_stop,
            )
            algorithm.run(federation, recorder)
    except KeyboardInterrupt as stop:
        folder.finish("interrupted")
        if report:
            write_report(folder, progress, strict=False)
        raise Interrupted(f"interrupted; {path} can be read", path=path) from stop
    except BaseException as error:
        folder.finish("failed", " ".join(f"{type(error).__name__}: {error}".split()))
        if report:
            write_report(folder, progress, strict=False)
        progress.log(f"{path} holds what was done until then")
        raise
    else:
        folder.finish("finished")
        if report:
            write_report(folder, progress, strict=True)
    finally:
        folder.close()
    return folder


def write_report(folder: RunFolder, progress: Progress, *, strict: bool) -> None:
    """strict: False where another error is on its way up and must not be hidden by this one."""
    from python_api.report import write_report as write

    try:
        write(folder.path)
    except Exception as error:
        line = f"the report could not be written: {type(error).__name__}: {error}"
        folder.log(line)
        if strict:
            raise RunFailed(f"{folder.path}: the run is finished, {line}") from error
        progress.log(line)


@contextmanager
def log_to(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """What the package logs goes to `log.txt` in full, and to the screen as one line."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            folder.log(self.format(record))
            progress.log(record.getMessage())

    logger, handler = logging.getLogger("fedkernels"), Handler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
