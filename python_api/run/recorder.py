"""What an algorithm tells the outside while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from python_api.run.interrupt import Interrupted

if TYPE_CHECKING:
    from python_api.federation.bus import Party
    from python_api.progress import Progress
    from python_api.run.folder import RunFolder

__all__ = ["Recorder"]


class Recorder:
    """Metrics, progress, and the state of every finished round.

    Before the runner has created the run folder (while parties and models are built), `progress`
    and `log` work and everything else has to wait.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        stop: Callable[[], bool] = lambda: False,
        rounds: int = 0,
        keep_all: bool = True,
    ) -> None:
        self._progress = progress
        self._stop = stop
        self._rounds = rounds
        self._keep_all = keep_all
        self._folder: RunFolder | None = None
        self._parties: Sequence[Party] = ()
        self._early: list[str] = []
        self.began = time.perf_counter()

    def attach(self, folder: RunFolder, parties: Sequence[Party]) -> None:
        """The runner's call once the folder exists; what was logged before goes into it."""
        self._folder, self._parties = folder, parties
        folder.log(self._progress.title)
        for line in self._early:
            folder.log(line)
        self._early.clear()

    @property
    def stop_requested(self) -> bool:
        """Whether the user pressed Ctrl-C. `progress` and `round_done` look at it by themselves."""
        return self._stop()

    def check_stop(self) -> None:
        """Raises `Interrupted` if a stop was requested."""
        if self._stop():
            raise Interrupted("stopped after the step in hand")

    def metric(
        self,
        *,
        round: int,
        party: str,
        phase: str,
        split: str,
        metric: str,
        value: float,
        seconds: float | None = None,
    ) -> None:
        """One row of `metrics.jsonl`. Reports read a party's last row in file order.

        phase: `"global"` after a download, `"local"` after training. split: `"test"`, ...
        seconds: since the run began, unless it is given. A value that is not finite becomes null.
        """
        seconds = time.perf_counter() - self.began if seconds is None else seconds
        row = {
            "round": round,
            "party": party,
            "phase": phase,
            "split": split,
            "metric": metric,
            "value": value,
            "seconds": round_to(seconds),
        }
        self._open().metric(row)
        self._progress.metric(row)

    def progress(
        self,
        *,
        party: str,
        round: int = 0,
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
        task: str | None = None,
    ) -> None:
        """To be called after every step: shows where the run is, stops it if that was requested.

        step counts from 1 to steps. task: what is being done; by default "train", before round 1
        "pretrain".
        """
        task = task or ("train" if round else "pretrain")
        self._progress.step(party=party, round=round, step=step, steps=steps, loss=loss, task=task)
        self.check_stop()

    def log(self, text: str) -> None:
        """A line for `log.txt` and the screen."""
        if self._folder is None:
            self._early.append(text)
        else:
            self._folder.log(text)
        self._progress.log(text)

    def round_done(self, round: int, server_state: Mapping[str, object] | None = None) -> None:
        """Keeps a finished round: models, checkpoint, status. Then stops if that was requested.

        With `keep = "last"` of `run` only the last round is kept.
        """
        folder = self._open()
        if self._keep_all or round >= self._rounds:
            folder.keep_round(round, self._parties, dict(server_state or {}))
        self._progress.round_done(round, self._rounds)
        folder.log(self._progress.round_line())
        if round < self._rounds:  # after the last round there is nothing left to stop
            self.check_stop()

    def _open(self) -> RunFolder:
        if self._folder is None:
            raise RuntimeError("metrics and rounds are recorded once all parties are built")
        return self._folder


def round_to(seconds: float) -> float:
    return float(f"{seconds:.3f}")
