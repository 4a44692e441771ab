"""Puts the parts together: run folders in, ``report.html`` and ``figures/`` out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from python_api.report.comparison import comparison_sections
from python_api.report.formats import seconds_text
from python_api.report.parts import Section
from python_api.report.reading import RunData, read_run
from python_api.report.sections import run_sections
from python_api.report.words import (
    algorithm_title,
    comparison_words,
    status_of,
    verdict,
)

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write_report"]


@dataclass(frozen=True)
class RunView:
    """One run as the template sees it."""

    name: str
    what: str
    status: str
    verdict: str
    sections: tuple[Section, ...]


def write_report(
    folder: str | Path,
    *others: str | Path,
    out: str | Path | None = None,
    extra: Sequence[Section] = (),
    figures: bool = True,
    title: str | None = None,
) -> Path:
    """Writes ``report.html`` and ``figures/*.png`` from run folders, and returns the page's path.

    The page is one self-contained file: it holds no script and asks for no other file.

    Args:
        folder: a run folder, in whatever state its run left it.
        others: further run folders, put beside the first one.
        out: where the page goes; its folder also takes ``figures/``. Default: ``report.html`` in
            `folder`, or ``comparison.html`` there if there are others.
        figures: whether the PNG files are written; the page does not need them.
        title: the page's heading; by default it names the runs.
        extra: sections of what was measured beside these runs, shown before the runs' own.

    Raises:
        InputError: one of the folders is no run folder; nothing is written then.
    """
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    from python_api.report.figures import write_figures

    runs = _read_all([Path(folder), *(Path(other) for other in others)])
    name = "report.html" if len(runs) == 1 else "comparison.html"
    page = Path(out) if out is not None else runs[0].path / name
    if figures:
        folder = page.parent / "figures"
        for run in runs:
            write_figures(run, folder if len(runs) == 1 else folder / run.name)

    templates = Templates(
        loader=PackageLoader("python_api.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    views = [_view(run) for run in runs]
    single = len(runs) == 1
    comparison = (*(() if single else comparison_sections(runs)), *extra)
    html = templates.get_template("report.html.j2").render(
        title=_title(runs) if title is None else title,
        subtitle=_subtitle(runs),
        style=_style(templates),
        verdict=_verdicts(runs),
        problems=[
            problem if single else f"{run.name}: {problem}"
            for run in runs
            for problem in run.problems
        ],
        contents=_contents(views, comparison, single=single),
        comparison={"sections": comparison} if comparison else None,
        first=views[0],
        runs=views,
        single=single,
    )
    _replace(page, html)
    return page


def _read_all(folders: Sequence[Path]) -> list[RunData]:
    """The runs, with names that tell them apart even where two folders are called alike."""
    runs: list[RunData] = []
    for folder in folders:
        name = folder.resolve().name
        taken = {run.name for run in runs}
        number = 2
        while name in taken:
            name = f"{folder.resolve().name}-{number}"
            number += 1
        runs.append(read_run(folder, name=name))
    return runs


def _view(run: RunData) -> RunView:
    return RunView(
        name=run.name,
        what=algorithm_title(run),
        status=status_of(run),
        verdict=verdict(run),
        sections=run_sections(run),
    )


def _title(runs: Sequence[RunData]) -> str:
    if len(runs) == 1:
        return f"{algorithm_title(runs[0])}: {runs[0].name}"
    return "Runs side by side: " + ", ".join(run.name for run in runs)


def _subtitle(runs: Sequence[RunData]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    parts = []
    started, seconds = runs[0].status.get("started"), runs[0].status.get("seconds")
    if isinstance(started, str):
        parts.append(f"started {started.replace('T', ' ').replace('Z', ' UTC')}")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        parts.append(f"took {seconds_text(float(seconds))}")
    packages = runs[0].environment.get("packages")
    if isinstance(packages, Mapping) and "fedkernels" in packages:
        parts.append(f"fedkernels {packages['fedkernels']}")
    return ", ".join(parts)


def _verdicts(runs: Sequence[RunData]) -> list[str]:
    return [verdict(runs[0])] if len(runs) == 1 else [comparison_words(runs)]


def _contents(
    views: Sequence[RunView], comparison: Sequence[Section], *, single: bool
) -> list[tuple[str, str]]:
    entries = [(f"all-{section.key}", section.title) for section in comparison]
    if single:
        return entries + [(section.key, section.title) for section in views[0].sections]
    return entries + [(f"run-{number}", view.name) for number, view in enumerate(views, start=1)]


def _style(templates: Environment) -> Markup:
    """The style sheet, marked as safe: it comes from the package and holds nothing of a run."""
    return Markup(templates.get_template("style.css.j2").render())


def _replace(path: Path, text: str) -> None:
    """A reader never sees half a page: written beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
