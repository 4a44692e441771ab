"""Runs a family's benchmarks: first the gate, then the clock, all contenders in turns.

    python -m fedkernels_benchmarks.run triple_lora [--quick] [--out FILE]

A case is timed only after its own call, on its own tensors, has passed the error budget against the
float64 reference (output and gradients) in this very run. A peer is timed only if it computes the
same thing. What failed is reported as a failure, never as a time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedkernels.testing import Timing, interleave, saved_activations
from fedkernels.testing.check import Verdict

from .machine import Bound, commit, device_name, machine_name, measure_bound, versions
from .memory import peak_bytes
from .peers import Contender, Peer, PeerMissing
from .registry import ENTRIES, FORWARD, SAVED, Case, Entry

__all__ = ["Row", "families", "read_rows", "run_family", "write_rows"]

PASSED = "passed"


@dataclass(frozen=True)
class Row:
    """One measured contender; the fields are the keys of a line in results/<machine>.jsonl.

    id: entry/case/direction/dtype/contender. backend: ours by its name ("cpu"), a peer by name and
    version. peak_mb: the most tensor memory (10^6 bytes) that a call holds above what was there
    before; for direction "saved", what it keeps for backward. percent_of_bound: the platform's own
    product, copy and exponential, measured in the same run, are the bound. gate: "passed ..." or
    why there is no figure. Rows of one run share `date`.
    """

    id: str
    family: str
    op: str
    direction: str
    backend: str
    case: str
    shape: dict[str, int]
    dtype: str
    median_us: float | None
    p20_us: float | None
    p80_us: float | None
    n: int
    peak_mb: float | None
    gb_per_s: float | None
    tflop_per_s: float | None
    percent_of_bound: float | None
    gate: str
    git: str
    torch: str
    triton: str
    cuda: str
    device: str
    threads: int
    date: str

    @property
    def passed(self) -> bool:
        return self.gate.startswith(PASSED)

    @property
    def entry(self) -> str:
        return self.id.split("/")[0]

    @property
    def contender(self) -> str:
        """ "ours", or the peer's name without its version."""
        return self.id.split("/")[-1]


def families() -> tuple[str, ...]:
    """The families that have benchmarks."""
    return tuple(dict.fromkeys(entry.family for entry in ENTRIES))


def run_family(
    family: str,
    *,
    device: str = "cpu",
    quick: bool = False,
    out: Path | str | None = None,
    threads: int = 2,
    seconds: float | None = None,
    select: Callable[[Entry, Case, str], bool] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Gates and times every case of `family`; rows in the registry's order.

    quick: float32 and small sizes only, under 30 s in all. seconds: the time budget of one case
    and direction (default 3, quick 0.3); at least three rounds run whatever they cost.
    select(entry, case, dtype): which cases run (default: all). out: appends the rows that passed.
    progress: called with a line before each case. threads: torch's own pool, restored at the end.
    Raises ValueError for a family without benchmarks.
    """
    if family not in families():
        raise ValueError(f"family must be one of {', '.join(families())}; got {family!r}")
    session = _Session(device, quick, seconds or (0.3 if quick else 3.0), threads, progress)
    rows: list[Row] = []
    with _threads(threads):
        for entry in ENTRIES:
            if entry.family != family:
                continue
            for dtype in entry.dtypes[:1] if quick else entry.dtypes:
                for case in entry.quick if quick else entry.cases:
                    if select is None or select(entry, case, dtype):
                        if progress is not None:
                            progress(f"{entry.name}  {case.name}  {dtype}")
                        rows.extend(session.measure(entry, case, dtype))
    if out is not None:
        write_rows(rows, out)
    return rows


def write_rows(rows: Iterable[Row], path: Path | str) -> None:
    """Appends the rows that passed to a JSONL file; one that failed is never stored."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows if row.passed)


def read_rows(path: Path | str) -> list[Row]:
    """The rows of a JSONL file. ValueError names the file and the line that is no row."""
    known = {field.name for field in fields(Row)}
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from None
        if not isinstance(values, dict) or values.keys() != known:
            odd = sorted(known ^ set(values)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{path}:{number}: not a benchmark row; keys that differ: {odd}")
        rows.append(Row(**values))
    return rows


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gate(entry: Entry, problem: Any) -> Verdict:
    try:
        return entry.gate(problem, "auto")
    except RuntimeError as error:  # a kernel that raises has failed its gate; the others still run
        first = (str(error).splitlines() or [""])[0]
        return Verdict(False, math.inf, "none", f"{type(error).__name__}: {first}")


class _Session:
    """What the rows of one run share."""

    def __init__(
        self,
        device: str,
        quick: bool,
        seconds: float,
        threads: int,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.device, self.quick, self.seconds = device, quick, seconds
        self.progress = progress
        self.bounds: dict[str, Bound] = {}
        self.common = {
            "git": commit(),
            **versions(),
            "device": device_name(device),
            "threads": threads,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def measure(self, entry: Entry, case: Case, dtype: str) -> list[Row]:
        """Rows of one case in one dtype: ours first, then the peers, per direction."""
        torch_dtype = getattr(torch, dtype)
        problem = entry.problem(case.sizes, torch_dtype, self.device)
        ours = entry.ours(problem, "auto")
        verdict = _gate(entry, problem)
        contenders: dict[str, Contender] = {"ours": ours}
        labels = {"ours": verdict.backend}
        gates = {"ours": f"{PASSED if verdict.passed else 'failed'}: {verdict.detail}"}
        if verdict.passed:
            mine = ours.results()
            for peer in entry.peers:
                if dtype in peer.dtypes:
                    labels[peer.name] = peer.label
                    gates[peer.name] = self._admit(entry, problem, mine, peer, contenders)
        rows: list[Row] = []
        for direction in entry.directions:
            blank = {name: self._blank(entry, case, dtype, direction, name) for name in labels}
            base = {
                name: replace(row, backend=labels[name], gate=gates[name])
                for name, row in blank.items()
            }
            ready = {name: c for name, c in contenders.items() if gates[name].startswith(PASSED)}
            if direction == SAVED:
                measured = self._saved(case, base, ready)
            else:
                measured = self._timed(entry, case, dtype, direction, base, ready)
            rows.extend({**base, **measured}.values())
        return rows

    def _admit(
        self, entry: Entry, problem: Any, mine: Any, peer: Peer, contenders: dict[str, Contender]
    ) -> str:
        """Builds the peer and runs it once (which also warms it up); returns its gate."""
        try:
            contender = peer.build(problem)
        except PeerMissing as missing:
            return f"missing: {missing}"
        try:
            theirs = contender.results()
        except RuntimeError as error:
            return f"failed: {str(error).splitlines()[0]}"
        if peer.same_work:
            difference = entry.same(problem, mine, theirs)
            if difference is not None:
                return f"failed: {difference}"
        contenders[peer.name] = contender
        return f"{PASSED}: same result" if peer.same_work else f"{PASSED}: a bound, not a rival"

    def _blank(self, entry: Entry, case: Case, dtype: str, direction: str, contender: str) -> Row:
        return Row(
            id=f"{entry.name}/{case.name}/{direction}/{dtype}/{contender}",
            family=entry.family,
            op=entry.op,
            direction=direction,
            backend="",
            case=case.name,
            shape=dict(case.sizes),
            dtype=dtype,
            median_us=None,
            p20_us=None,
            p80_us=None,
            n=0,
            peak_mb=None,
            gb_per_s=None,
            tflop_per_s=None,
            percent_of_bound=None,
            gate="",
            **self.common,
        )

    def _timed(
        self,
        entry: Entry,
        case: Case,
        dtype: str,
        direction: str,
        base: dict[str, Row],
        ready: dict[str, Contender],
    ) -> dict[str, Row]:
        calls = {
            name: contender.forward if direction == FORWARD else contender.step
            for name, contender in ready.items()
        }
        if not calls:
            return {}
        torch_dtype = getattr(torch, dtype)
        if dtype not in self.bounds:
            self.bounds[dtype] = measure_bound(torch_dtype, device=self.device)
            if self.progress is not None:
                self.progress(f"bounds measured here, {dtype}: {self.bounds[dtype]}")
        flops = entry.flops(case.sizes, direction)
        moved = entry.bytes_moved(case.sizes, direction, torch_dtype.itemsize)
        exps = entry.exps(case.sizes, direction)
        bound = self.bounds[dtype].seconds(flops, moved, exps)
        rows = {}
        for name, times in self._clock(calls).items():
            second = times.median_us / 1e6
            rows[name] = replace(
                base[name],
                median_us=round(times.median_us, 2),
                p20_us=round(times.p20_us, 2),
                p80_us=round(times.p80_us, 2),
                n=times.n,
                # One more call, under the profiler: calls of seconds go without.
                peak_mb=peak_bytes(calls[name], self.device) / 1e6 if second < 1 else None,
                gb_per_s=round(moved / second / 1e9, 4),
                tflop_per_s=round(flops / second / 1e12, 6),
                percent_of_bound=float(f"{100 * bound / second:.4g}"),
            )
        return rows

    def _clock(self, calls: dict[str, Callable[[], Any]]) -> dict[str, Timing]:
        wait = torch.cuda.synchronize if self.device != "cpu" else None
        return interleave(calls, seconds=self.seconds, min_rounds=3, synchronize=wait)

    def _saved(
        self,
        case: Case,
        base: dict[str, Row],
        ready: dict[str, Contender],
    ) -> dict[str, Row]:
        rows = {}
        for name, contender in ready.items():
            with saved_activations(exclude=contender.parameters) as saved:
                output = contender.forward()
            del output
            rows[name] = replace(base[name], peak_mb=saved.bytes / 1e6, n=1)
            wanted = case.sizes["N"] * case.sizes["r"]
            if name == "ours" and saved.elements != wanted:
                gate = f"failed: {saved.elements} elements kept for backward, N * r is {wanted}"
                rows[name] = replace(base[name], gate=gate)
        return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a gate failed."""
    parser = argparse.ArgumentParser(description="Gated benchmarks of a kernel family.")
    parser.add_argument("family", choices=families(), nargs="?", default=families()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="float32, small sizes, under 30 s")
    parser.add_argument("--seconds", type=float, help="time budget of one case and direction")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--entry", action="append", help="only entries whose name has this in it")
    parser.add_argument("--case", action="append", help="only cases whose name has this in it")
    parser.add_argument("--dtype", action="append", help="only these dtypes")
    parser.add_argument("--out", type=Path, help="append the rows that passed to this file")
    options = parser.parse_args(arguments)

    def select(entry: Entry, case: Case, dtype: str) -> bool:
        return (
            (not options.entry or any(part in entry.name for part in options.entry))
            and (not options.case or any(part in case.name for part in options.case))
            and (not options.dtype or dtype in options.dtype)
        )

    from .table import print_table

    rows = run_family(
        options.family,
        device=options.device,
        quick=options.quick,
        out=options.out,
        threads=options.threads,
        seconds=options.seconds,
        select=select,
        progress=lambda line: print(line, flush=True),
    )
    print_table(rows)
    return (
        1 if any(row.gate.startswith("failed") and row.contender == "ours" for row in rows) else 0
    )


def default_path(device: str = "cpu") -> Path:
    """Where `fedkernels bench` stores rows: results/<machine>.jsonl under runs/bench."""
    return Path("runs", "bench", f"{machine_name(device)}.jsonl")


if __name__ == "__main__":
    raise SystemExit(main())
