"""Tables that are not built in: a draw of the credit files, and columns of pure noise."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

from python_api.errors import InputError

__all__ = ["credit_folder", "credit_tables", "noise_table"]

ROWS = 6000
LABEL = "y"
VARIABLE = "FEDKERNELS_DATA"


def credit_folder() -> Path | None:
    """The folder `credit` with guest.csv and host.csv below `FEDKERNELS_DATA`; None if absent."""
    place = os.environ.get(VARIABLE)
    folder = Path(place) / "credit" if place else None
    if folder is None or not all((folder / f"{name}.csv").is_file() for name in ("guest", "host")):
        return None
    return folder


def credit_tables(source: Path, out: Path, seed: int, *, rows: int = ROWS) -> tuple[Path, Path]:
    """Draws `rows` ids by seed and writes both parties' rows of them, the host's with the label.

    The label stands in both files so that one draw serves both settings: a party whose config does
    not claim it never sees it.
    """
    guest, host = _read(source / "guest.csv"), _read(source / "host.csv")
    common = sorted(set(guest) & set(host))
    if not common:
        raise InputError(f"{source}: guest.csv and host.csv share no id")
    drawn = random.Random(seed).sample(common, min(rows, len(common)))
    paths = out / f"credit-{seed}-guest.csv", out / f"credit-{seed}-host.csv"
    _write(paths[0], [guest[number] for number in drawn])
    _write(paths[1], [host[number] | {LABEL: guest[number][LABEL]} for number in drawn])
    return paths


def noise_table(out: Path, seed: int, *, ids: range, columns: int = 32) -> Path:
    """A table that knows nothing: Gaussian numbers for every id."""
    draw = random.Random(seed)
    path = out / f"noise-{seed}.csv"
    rows = [
        {"id": str(number)} | {f"n{at}": f"{draw.gauss(0, 1):.4f}" for at in range(columns)}
        for number in ids
    ]
    _write(path, rows)
    return path


def _read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    """Written aside and renamed; the same draw gives the same bytes, and so the same run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)
