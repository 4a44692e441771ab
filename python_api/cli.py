"""The command `fedkernels`. Bodies live elsewhere and are imported when their command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from python_api.errors import InputError, RunFailed

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedkernels",
    help="Federated fine-tuning of models that differ in width, depth, rank and task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Device(StrEnum):
    """Where tensors live."""

    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """What `export` writes."""

    peft = "peft"
    merged = "merged"


Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the config; VALUE is TOML."),
]
OnDevice = Annotated[Device | None, typer.Option(help="Beats every device in the config.")]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
PartyName = Annotated[str, typer.Argument(metavar="PARTY", help="A party of the run.")]
Table = Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl, .csv, .tsv or .parquet")]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="PARTY=FILE", help="Another party's table, joined by id."),
]


@app.command()
def run(
    source: Annotated[str, typer.Argument(metavar="ALGORITHM|CONFIG.toml")],
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that run.")] = False,
    device: OnDevice = None,
) -> None:
    """Run an algorithm, by name or by config."""
    from python_api.check import preflight
    from python_api.config import load_config, parse_set
    from python_api.run import run as start
    from python_api.show import show_summary

    overrides, place = parse_set(set_ or ()), device.value if device else None
    # one line, before any progress shows
    preflight(load_config(source, overrides, device=place), here=True)
    with _stoppable():
        done = start(
            source,
            out=out,
            overrides=overrides,
            device=place,
            overwrite=overwrite,
        )
    show_summary(done)
    print(f"report: {done.report}")


@app.command()
def config(
    algorithm: Annotated[str, typer.Argument(metavar="[ALGORITHM]")] = "h2tune",
    explain: Annotated[bool, typer.Option("--explain", help="What each key does.")] = False,
) -> None:
    """Write a commented TOML to start from."""
    from python_api.config import explain as written
    from python_api.config import known_algorithms
    from python_api.config.keys import nearest

    known = known_algorithms()
    if algorithm not in known:
        near = nearest(algorithm, known)
        hint = f"nearest known: {near}" if near else f"expected one of {', '.join(known)}"
        raise InputError(f"{algorithm}: no such algorithm; {hint}")
    print(written(algorithm, full=explain), end="")


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="CONFIG")],
    set_: Sets = None,
    device: OnDevice = None,
) -> None:
    """Find what is wrong, and what a run costs, without training."""
    from python_api.check import check as look
    from python_api.config import load_config, parse_set
    from python_api.show import show_check

    resolved = load_config(source, parse_set(set_ or ()), device=device.value if device else None)
    report = look(resolved)
    show_check(report, title=f"{resolved.algorithm}, {resolved.rounds} rounds")
    for note in report.notes:
        print(note)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
def predict(
    folder: RunDir,
    party: PartyName,
    file: Table,
    with_: With = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default: standard output.")
    ] = None,
) -> None:
    """Add predictions to the rows of a file."""
    from python_api.data.loaders import write_rows
    from python_api.data.task import task_from_rows

    if out is None and file.suffix == ".parquet":
        raise InputError(f"{file}: .parquet does not go to standard output; expected --out FILE")
    trained, rows, others = _rows(folder, party, file, with_)
    if not trained.vertical:
        task_from_rows(rows, trained.own.task)  # a row without a text: named before a model loads
    found = trained.predict(rows, others=others)
    _warn(folder, party, rows, others)
    if out is not None:
        write_rows(found, out)
        print(f"{len(found)} rows: {out}")
        return
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"rows{file.suffix or '.csv'}"  # built-in tables have no ending
        write_rows(found, path)
        print(path.read_text(encoding="utf-8"), end="")


@app.command()
def evaluate(folder: RunDir, party: PartyName, file: Table, with_: With = None) -> None:
    """Measure a trained party on the rows of a file."""
    from python_api.show import show_table

    trained, rows, others = _rows(folder, party, file, with_)
    if not trained.vertical:
        task = trained.own.task
        column = task.label if task.kind == "classification" else task.answer
        for index, row in enumerate(rows):
            if column not in row:
                found = ", ".join(row)
                raise InputError(f"{rows.where(index)}: no column {column!r}; found {found}")
    measured = trained.evaluate(rows, others=others)
    _warn(folder, party, rows, others)
    show_table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in measured.items()])


@app.command()
def export(
    folder: RunDir,
    party: PartyName,
    format: Annotated[Format, typer.Option(help="An adapter, or the whole model.")] = Format.peft,
    out: Annotated[Path | None, typer.Option(help="A new folder.")] = None,
) -> None:
    """Write a party's model for PEFT or transformers."""
    from python_api.run import load

    trained = load(folder).party(party)
    if trained.vertical:
        raise InputError(
            f"{party}: a table's encoder is no model of PEFT or transformers; expected a party "
            f"with a task, and {trained.path / 'native'} holds this one as safetensors and JSON"
        )
    place = out or folder / "export" / f"{party}-{format.value}"
    if place.exists():
        raise InputError(f"{place}: exists; expected a new folder, by --out DIR")
    base = folder / "models" / party / "base"
    if base.is_dir():  # the adapter names what it belongs to, and may stand anywhere
        trained.model.base.path = str(base.resolve())
    trained.model.model.export(place, format=format.value)
    print(f"{format.value}: {place}")


@app.command()
def report(folders: Annotated[list[Path], typer.Argument(metavar="DIR...")]) -> None:
    """Write the report of a run again, or compare several."""
    from python_api.report import write_report

    print(f"report: {write_report(folders[0], *folders[1:])}")


@app.command()
def sweep(
    source: Annotated[str, typer.Argument(metavar="CONFIG")],
    grid: Annotated[Path, typer.Option(help="TOML: seed = [...] and [[row]] tables.")],
    jobs: Annotated[int, typer.Option(help="Runs at a time; they share the cores.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder.")] = None,
    set_: Sets = None,
) -> None:
    """Run a config over seeds and rows: one table with paired intervals."""
    from python_api.config import parse_set
    from python_api.show import show_table
    from python_api.sweep import collate, load_grid
    from python_api.sweep import sweep as start
    from python_api.sweep.drive import default_folder
    from python_api.sweep.table import cells

    asked = load_grid(grid)
    with _stoppable():
        done = start(
            source,
            asked,
            out=out or default_folder(grid),
            jobs=jobs,
            overrides=parse_set(set_ or ()),
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    show_table(*cells(collate(done.lines, asked), asked), title=f"{asked.metric}, {asked.split}")
    for name in ("table.md", "figure.png", "rows.jsonl"):
        if (done.path / name).is_file():
            print(f"{name.split('.')[0]}: {done.path / name}")
    if failed := done.failed:
        where = f"{failed[0]['row']}, seed {failed[0]['seed']}"
        raise RunFailed(f"{len(failed)} runs failed; first: {where}: {failed[0]['reason']}")


@app.command()
def bench(
    family: Annotated[str, typer.Argument(metavar="[FAMILY]")] = "triple_lora",
    device: Annotated[Device, typer.Option()] = Device.cpu,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, under 30 s.")] = False,
) -> None:
    """Time the kernels against their peers, each behind its test."""
    _resolve(device)
    from fedkernels_benchmarks.run import default_path, run_family
    from fedkernels_benchmarks.table import print_table

    path = default_path(device.value)
    rows = run_family(
        family,
        device=device.value,
        quick=quick,
        out=path,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_table(rows)
    print(f"rows: {path}")
    failed = [row for row in rows if row.gate.startswith("failed") and row.contender == "ours"]
    if failed:
        raise RunFailed(f"{len(failed)} rows failed their test; first: {failed[0].case}")


@app.command("check-kernels")
def check_kernels(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]")] = None,
    device: Annotated[Device, typer.Option()] = Device.cpu,
) -> None:
    """Hold every kernel to its specification on this machine."""
    _resolve(device)
    from fedkernels.testing.check import check_kernels as look

    rows = look(family, device=device.value, progress=lambda row: print(row, flush=True))
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(rows)} checks failed; first: {failed[0]}")
    print(f"{sum(row.passed for row in rows)} of {len(rows)} passed, none failed")


@app.command()
def info() -> None:
    """What is installed and built, and which backends run here."""
    from fedkernels.info import collect, render

    print(render(collect()))


@app.command()
def demo() -> None:
    """Algorithms on built-in data, kernel speed: runs/demo/report.html."""
    from python_api.demo import demo as show

    with _stoppable():
        show()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. 0; 1 a run failed; 2 bad input; 130 interrupted."""
    try:
        outcome = app(arguments, standalone_mode=False)
    except RunFailed as error:
        return _fail(error, 1)
    except ValueError as error:  # InputError, and the functions of fedkernels
        return _fail(error, 2)
    except _Stopped as stop:
        return _interrupted(stop.__cause__)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except Exception as error:
        name = type(error).__name__
        if name == "NoArgsIsHelpError":
            print(error)
            return 2
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            return _fail(error.format_message(), 2)
        if name == "Abort":  # what the command line makes of a KeyboardInterrupt
            return _interrupted(error.__cause__)
        import traceback

        traceback.print_exc()
        return 1
    if outcome == 130:  # a KeyboardInterrupt in a version of typer that keeps it to itself
        return _interrupted(None)
    return outcome if isinstance(outcome, int) else 0


class _Stopped(Exception):
    """Ctrl-C during a run, past a command line library that would drop what it says."""


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise _Stopped from stop


def _fail(error: object, code: int) -> int:
    print(" ".join(str(error).split()), file=sys.stderr)
    return code


def _interrupted(error: BaseException | None) -> int:
    """130, after the folder of the run and its report, if there is one."""
    code = _fail(str(error or "") or "interrupted", 130)
    folder = getattr(error, "path", None)
    if folder is not None and (report := Path(folder) / "report.html").is_file():
        print(f"report: {report}")
    return code


def _resolve(device: Device) -> None:
    """Refuses a device that this machine lacks."""
    from python_api.models.bases import resolve_device

    resolve_device(device.value)


def _rows(folder: Path, party: str, file: Path, with_: list[str] | None) -> tuple[Any, Any, Any]:
    """The trained party, the file's rows read as its training file was, and the others' rows."""
    from python_api.data.loaders import read_rows
    from python_api.run import load
    from python_api.run.joined import check_columns, parse_with, read_joined

    done = load(folder)
    trained = done.party(party)
    files = parse_with(with_ or ())
    if trained.vertical:
        rows, others = read_joined(done, party, str(file), files)
        check_columns(trained.model.columns, {party: rows} | others)
        return trained, rows, others
    if files:
        raise InputError(f"--with: the parties of {folder} share no rows; expected no other file")
    columns = trained.own.task.columns if file.suffix in (".csv", ".tsv") else None
    return trained, read_rows(file, columns=columns), {}


def _warn(folder: Path, party: str, rows: Any, others: Any) -> None:
    """A line per file whose ids match nothing: its party counted as absent."""
    from python_api.run import load
    from python_api.run.joined import unmatched

    for line in unmatched(load(folder).config, party, rows, others) if others else ():
        print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
