"""Runs, one after another in this process or several at a time in processes of their own.

A process is spawned once and takes run after run, so that the imports are paid once; spawned, not
forked, since the thread pools of torch do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from python_api.progress import Progress
from python_api.run.interrupt import Interrupted
from python_api.sweep.grid import Grid
from python_api.sweep.plan import Job
from python_api.sweep.records import Line, failed_line, lines_of

__all__ = ["Pool", "Task", "cores", "execute"]

Task = tuple[Job, Grid]
# Seconds between two looks at whether the user pressed Ctrl-C.
LOOK = 0.2


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def execute(task: Task, progress: Progress) -> list[Line]:
    """One run and what is kept of it; a run that fails gives the line that says so.

    Errors: `Interrupted` after Ctrl-C.
    """
    import torch

    from python_api.run import run

    job, grid = task
    began = time.perf_counter()
    try:
        done = run(
            job.source,
            overrides=job.overrides,
            out=job.folder,
            overwrite=True,
            progress=progress,
            report=False,
            keep="last",
        )
        seconds = time.perf_counter() - began
        lines = lines_of(done, job, grid, seconds=seconds, threads=torch.get_num_threads())
    except Exception as error:
        return [failed_line(job, " ".join(f"{type(error).__name__}: {error}".split()))]
    if not job.keep_folder:
        shutil.rmtree(job.folder, ignore_errors=True)
    if not lines:
        return [failed_line(job, "the run recorded no metric")]
    return lines


class Pool:
    """Runs tasks, `jobs` at a time; with one job, in this process.

    `run` yields every task's job and lines as they come. Between two looks at `stop` at most
    `LOOK` seconds pass; then the runs in hand stop after their step and `Interrupted` is raised.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.end(at_once=exc[0] is not None)
        self._workers.clear()

    def run(self, tasks: Iterable[Task], stop: Callable[[], bool]) -> Iterator[tuple[Job, Any]]:
        """Errors: `Interrupted` if `stop` said so; what was in hand is not yielded."""
        waiting = deque(tasks)
        if self.jobs == 1:
            while waiting:
                if stop():
                    raise Interrupted
                yield waiting[0][0], execute(waiting.popleft(), Progress())
            return
        while waiting or any(worker.task for worker in self._workers):
            if stop():
                yield from self._stop()
                raise Interrupted
            self._hand_out(waiting)
            yield from self._gather(stop)

    def _hand_out(self, waiting: deque[Task]) -> None:
        for worker in self._workers:
            if worker.task is None and waiting:
                worker.take(waiting.popleft())
        while waiting and len(self._workers) < self.jobs:
            worker = _Worker(threads=max(1, cores() // self.jobs))
            self._workers.append(worker)
            worker.take(waiting.popleft())

    def _gather(self, stop: Callable[[], bool]) -> Iterator[tuple[Job, list[Line]]]:
        busy = {worker.connection: worker for worker in self._workers if worker.task}
        for connection in wait(list(busy), timeout=LOOK):
            worker = busy[connection]  # type: ignore[index]
            job = worker.task[0]  # type: ignore[index]
            lines = worker.result()
            if worker.dead:
                self._workers.remove(worker)
            if lines:
                yield job, lines
            elif not stop():  # a signal that came to that process alone
                yield job, [failed_line(job, "the run was interrupted")]

    def _stop(self) -> Iterator[tuple[Job, list[Line]]]:
        for worker in self._workers:
            worker.ask_to_stop()
        while any(worker.task for worker in self._workers):
            yield from self._gather(lambda: True)


class _Worker:
    """A process, seen from the parent: idle, or with a task in hand."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: Task | None = None
        self.dead = False
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, threads), name="fedkernels sweep", daemon=True
        )
        with _deaf():
            self.process.start()
        theirs.close()

    def take(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # it died while idle: `result` says so
            self.connection.send(task)

    def result(self) -> list[Line] | None:
        """The lines of the task in hand; None if it was stopped."""
        assert self.task is not None
        job = self.task[0]
        self.task = None
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.dead = True
            self.process.join()
            code = self.process.exitcode
            told = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return [failed_line(job, f"its process ended with {told}")]

    def ask_to_stop(self) -> None:
        with suppress(BrokenPipeError):
            self.connection.send(None)

    def end(self, *, at_once: bool) -> None:
        if at_once and self.task is not None:
            self.process.terminate()
        self.connection.close()  # which an idle process takes as the end
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


class _deaf:
    """A process that starts meanwhile ignores Ctrl-C until it says otherwise."""

    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *exc: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)


class _Told(Progress):
    """Shows nothing; stops the run when the parent says so, or is gone."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._looked = 0.0

    def step(self, **at: Any) -> None:
        now = time.perf_counter()
        if now - self._looked < LOOK:
            return
        self._looked = now
        if self._connection.poll():
            raise Interrupted

    def notice(self, text: str) -> None:
        pass  # the parent says it, once


def _work(connection: Connection, threads: int) -> None:
    """What a process does: tasks in, lines out, None for a run that was stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while a run is in hand, `run` listens
    import torch

    torch.set_num_threads(threads)
    try:
        while (task := connection.recv()) is not None:
            try:
                lines = execute(task, _Told(connection))
            except KeyboardInterrupt:
                lines = None
            connection.send(lines)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
