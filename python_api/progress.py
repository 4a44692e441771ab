"""Where a run is: party, round, step, loss, time left. On a terminal, in a log, in a notebook."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import rich.progress

__all__ = [
    "LogProgress",
    "NotebookProgress",
    "Progress",
    "TerminalProgress",
    "make_progress",
]

# Seconds between two lines of a log: a run of hours must not fill a disk, a stuck one must show.
LOG_EVERY = 10.0
NOTEBOOK_EVERY = 0.5


class Progress:
    """Shows nothing, and keeps what the others show: the base class and the silent choice.

    The run's share done is `(rounds before + share of this round) / rounds`, that of a round the
    parties' shares of their steps; the time left is the time since round 1 began, in proportion.
    """

    silent = True

    def __init__(self) -> None:
        self.title = ""
        self.rounds = 0
        self.parties = 1
        self.headline: dict[str, float] = {}
        self._round = 0
        self._turns: dict[str, float] = {}
        self._began: float | None = None

    def start(self, title: str, *, rounds: int, parties: int) -> None:
        self.title, self.rounds, self.parties = title, rounds, max(parties, 1)

    def step(
        self,
        *,
        party: str,
        round: int,
        step: int,
        steps: int,
        loss: float | None,
        task: str,
    ) -> None:
        if round > 0 and self._began is None:
            self._began = time.perf_counter()
        if round != self._round:
            self._round = round
            self._turns.clear()
        if task == "train" and steps:
            self._turns[party] = min(step / steps, 1.0)

    def metric(self, row: Mapping[str, Any]) -> None:
        if row["metric"] == "accuracy" and row["split"] == "test":
            self.headline[row["party"]] = row["value"]

    def log(self, text: str) -> None:
        pass

    def notice(self, text: str) -> None:
        """As `log`, from inside a signal handler: may take no lock and touch no buffer."""
        os.write(2, f"\n{text}\n".encode())

    def round_done(self, round: int, rounds: int) -> None:
        self._round, self.rounds = round, rounds or self.rounds
        self._turns = dict.fromkeys(map(str, range(self.parties)), 1.0)

    def stop(self) -> None:
        """Leaves the screen in order. May be called twice."""

    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        if not self.rounds or not self._round:
            return 0.0
        turns = min(sum(self._turns.values()) / self.parties, 1.0)
        return min((self._round - 1 + turns) / self.rounds, 1.0)

    def seconds_left(self) -> float | None:
        """None in the first second, where there is nothing to reckon from."""
        share = self.share()
        elapsed = 0.0 if self._began is None else time.perf_counter() - self._began
        if share <= 0 or elapsed < 1:
            return None
        return elapsed * (1 - share) / share

    def line(
        self,
        *,
        party: str,
        round: int,
        step: int,
        steps: int,
        loss: float | None,
        task: str,
    ) -> str:
        """`round 2/5  shop  train 30/120  loss 0.532  2:10 left`"""
        parts = [f"round {round}/{self.rounds}"] if round else []
        parts += [party, f"{task} {step}/{steps}" if steps else task]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)

    def round_line(self) -> str:
        """`round 2/5 done  shop 0.812  news 0.664  2:10 left`; the numbers are test accuracies."""
        parts = [f"round {self._round}/{self.rounds} done"]
        parts += [f"{party} {value:.3f}" for party, value in self.headline.items()]
        left = self.seconds_left()
        if left is not None and self._round < self.rounds:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)


class LogProgress(Progress):
    """Plain lines, for a log file or a pipe: a line at most every 10 s, and the end of a round."""

    silent = False

    def __init__(self, stream: TextIO | None = None, *, every: float = LOG_EVERY) -> None:
        super().__init__()
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._last = 0.0

    def start(self, title: str, *, rounds: int, parties: int) -> None:
        super().start(title, rounds=rounds, parties=parties)
        self.log(title)

    def step(self, **at: Any) -> None:
        super().step(**at)
        now = time.perf_counter()
        if now - self._last >= self._every:
            self._last = now
            self.log(self.line(**at))

    def round_done(self, round: int, rounds: int) -> None:
        super().round_done(round, rounds)
        now = time.perf_counter()
        # Rounds of a fraction of a second would write one line each: every 2 s, and the last one.
        if round == self.rounds or now - self._last >= min(2.0, self._every):
            self._last = now
            self.log(self.round_line())

    def log(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class TerminalProgress(Progress):
    """Two bars that stay in place (rich): the run with its time left, the step in hand."""

    silent = False

    def __init__(self) -> None:
        super().__init__()
        self._bars: rich.progress.Progress | None = None

    def start(self, title: str, *, rounds: int, parties: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        super().start(title, rounds=rounds, parties=parties)
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._run = self._bars.add_task(title, total=1.0, note="")
            self._turn = self._bars.add_task("", total=1.0, note="", visible=False)
            self._bars.start()
        self._bars.update(self._run, description=title)

    def step(self, **at: Any) -> None:
        super().step(**at)
        if self._bars is None:
            return
        loss = "" if at["loss"] is None else f"loss {at['loss']:.4g}"
        self._bars.update(
            self._turn,
            visible=True,
            description=f"{at['party']}  {at['task']}",
            total=at["steps"] or None,
            completed=at["step"],
            note=f"{at['step']}/{at['steps']}  {loss}" if at["steps"] else loss,
        )
        self._show_run()

    def round_done(self, round: int, rounds: int) -> None:
        super().round_done(round, rounds)
        self._show_run()
        self.log(self.round_line())

    def log(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _show_run(self) -> None:
        if self._bars is not None:
            left = self.seconds_left()
            note = f"round {self._round}/{self.rounds}" if self._round else ""
            note += f"  {clock(left)} left" if left is not None else ""
            self._bars.update(self._run, completed=self.share(), note=note)


class NotebookProgress(Progress):
    """One line that is replaced in place, and the rounds below it.

    display: IPython's `display`, which gives a handle with `update`; taken from IPython if absent.
    """

    silent = False

    def __init__(
        self,
        display: Callable[..., Any] | None = None,
        *,
        every: float = NOTEBOOK_EVERY,
    ) -> None:
        super().__init__()
        if display is None:
            from IPython import display as ipython

            display = ipython.display
        self._display = display
        self._handle: Any = None
        self._lines: list[str] = []
        self._every = every
        self._last = 0.0

    def start(self, title: str, *, rounds: int, parties: int) -> None:
        super().start(title, rounds=rounds, parties=parties)
        self._show("")

    def step(self, **at: Any) -> None:
        super().step(**at)
        now = time.perf_counter()
        if now - self._last >= self._every:
            self._last = now
            self._show(self.line(**at))

    def round_done(self, round: int, rounds: int) -> None:
        super().round_done(round, rounds)
        self.log(self.round_line())

    def log(self, text: str) -> None:
        self._lines = [*self._lines, text][-20:]
        self._show("")

    def notice(self, text: str) -> None:
        self.log(text)

    def stop(self) -> None:
        self._show("")

    def _show(self, line: str) -> None:
        page = _Page("\n".join([self.title, *self._lines, line]).strip())
        if self._handle is None:
            self._handle = self._display(page, display_id=True)
        else:
            self._handle.update(page)


class _Page:
    """A text that notebooks show unchanged, as HTML or plain."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


def make_progress(choice: bool | str | Progress | None = None) -> Progress:
    """None or True: what fits the place. False or `"none"`: nothing. Or `"terminal"`, `"log"`,
    `"notebook"`, or an object of one's own.

    >>> make_progress(False).silent
    True
    """
    if isinstance(choice, Progress):
        return choice
    kinds: dict[str, Callable[[], Progress]] = {
        "none": Progress,
        "log": LogProgress,
        "terminal": TerminalProgress,
        "notebook": NotebookProgress,
    }
    if choice is False:
        choice = "none"
    elif choice is None or choice is True:
        choice = "notebook" if in_notebook() else "terminal" if sys.stderr.isatty() else "log"
    if choice not in kinds:
        raise ValueError(f"progress must be one of {', '.join(kinds)}, got {choice!r}")
    return kinds[choice]()


def in_notebook() -> bool:
    """Whether this is a kernel with a front end. IPython is not imported to find that out."""
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(3725)
    ('1:15', '1:02:05')
    """
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{whole % 60:02d}"
