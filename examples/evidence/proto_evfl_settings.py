"""What Proto-EVFL is measured on, and against what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from examples.evidence.setting import Setting
from examples.evidence.tables_on_disk import LABEL, credit_folder, credit_tables, noise_table
from python_api.sweep import Row

__all__ = ["ABLATIONS", "BASELINES", "METHOD", "REFERENCE", "only", "settings"]

# The strongest baseline with the same information: what every row is paired with.
REFERENCE = Row("vfl_masked, adjust", {"algorithm": "vfl_masked", "proto_evfl.adjust": True})
METHOD = Row("proto_evfl", {"algorithm": "proto_evfl"})
BASELINES = tuple(
    Row(name, {"algorithm": name})
    for name in (
        "centralised",
        "vfl_local",
        "vfl_vanilla",
        "vfl_balanced",
        "vfl_masked",
        "fixmatch_lite",
        "fedcvt_lite",
    )
)
ABLATIONS = tuple(
    Row(name, {"algorithm": "proto_evfl", f"proto_evfl.{key}": value})
    for name, key, value in (
        ("literal", "preset", "literal"),
        ("select = none", "select", "none"),
        ("prior = none", "prior", "none"),
        ("prior = local", "prior", "local"),
        ("prior = global", "prior", "global"),
        ("gate = false", "gate", False),
        ("local = linear", "local", "linear"),
        ("local = none", "local", "none"),
        ("share = relations", "share", "relations"),
        ("l_ct = 1", "l_ct", 1.0),
        ("decide = joint", "decide", "joint"),
    )
) + tuple(
    Row(name, {"algorithm": "proto_evfl", **{f"proto_evfl.{k}": v for k, v in keys.items()}})
    for name, keys in (
        ("gate as published", {"gate_reads": "all", "gate_prior": True}),
        ("pseudo-labels, cheapest", {"pseudo": 0.3}),
        ("pseudo-labels, agree", {"pseudo": 0.3, "guess": "agree"}),
        ("pseudo-labels, balanced", {"pseudo": 0.3, "guess": "balanced"}),
    )
)
MAIN = (REFERENCE, METHOD, *BASELINES)
UNSEEN = (
    *MAIN,
    *ABLATIONS,
    Row("unseen = prototypes", {"algorithm": "proto_evfl", "proto_evfl.unseen": "prototypes"}),
    Row("unseen = relations", {"algorithm": "proto_evfl", "proto_evfl.unseen": "relations"}),
)
GATES = (REFERENCE, METHOD, next(row for row in ABLATIONS if row.name == "gate = false"))
DIGITS = range(1, 1798)
QUADRANTS = ("north_west", "north_east", "south_west", "south_east")
Config = dict[str, Any]


def settings(tables: Path) -> tuple[list[Setting], list[str]]:
    """All settings, and a line for each that this machine has no data for.

    tables: the folder that the drawn tables go to. The parts of the method are taken out one by one
    where the probes saw it move, so that the whole stays under three hours on two cores.
    """
    found = [
        _digits(2, 0.02, ablated=True),
        _digits(2, 0.10, ablated=True),
        _digits(2, 0.50, rounds=40),
        _digits(2, 0.02, labelled=True),
        _digits(2, 0.10, labelled=True, ablated=True),
        _digits(2, 0.50, labelled=True, rounds=40),
        _digits(2, 0.10, imbalance=1.0, rounds=40),
        _digits(4, 0.02),
        _digits(4, 0.10, ablated=True),
        _digits(4, 0.10, labelled=True),
        *(_small("breast_cancer", "diagnosis", overlap, "auc") for overlap in (0.02, 0.10)),
        _small("wine", "cultivar", 0.10, "balanced_accuracy"),
        _unseen(0.10),
        _unseen(0.50, rounds=40),
        _noise(tables),
    ]
    folder = credit_folder()
    if folder is None:
        return found, ["credit is left out: FEDKERNELS_DATA names no folder with credit/guest.csv"]
    for labelled in (False, True):
        found += [_credit(folder, tables, overlap, labelled=labelled) for overlap in (0.02, 0.10)]
    return found, []


def _config(
    label: str, parties: list[Config], overlap: float, *, imbalance: float = 50.0, rounds: int
) -> Config:
    """`rounds` are chosen for about 400 steps over the bus, with the best of 16 measurements kept.

    Evaluation is what differs from the built-in schedule: fewer, on the same validation rows.
    """
    return {
        "algorithm": "vfl_masked",
        "rounds": rounds,
        "eval": {"every": max(1, rounds // 16)},
        "data": {"label": label, "overlap": overlap, "imbalance": imbalance},
        "party": parties,
    }


def _views(table: str, views: int, label: str | None) -> list[Config]:
    """The first view is active; `label`: what the others hold too."""
    names = ("left", "right") if views == 2 else QUADRANTS
    parties: list[Config] = [
        {"name": name, "table": f"builtin:{table}?views={views}&view={view}", "id": "id"}
        for view, name in enumerate(names, 1)
    ]
    parties[0]["active"] = True
    for party in parties[1:]:
        party |= {} if label is None else {"label": label}
    return parties


def _digits(
    views: int,
    overlap: float,
    *,
    labelled: bool = False,
    imbalance: float = 50.0,
    rounds: int = 80,
    ablated: bool = False,
) -> Setting:
    kind = "B" if labelled else "A"
    even = ", balanced" if imbalance == 1 else ""
    parties = _views("digits", views, "digit" if labelled else None)
    config = _config("digit", parties, overlap, imbalance=imbalance, rounds=rounds)
    return Setting(
        name=f"digits{views}-{round(100 * overlap):02d}-{kind}{'-balanced' if even else ''}",
        group=f"digits in {views} views, passive parties {_told(labelled)}{even}",
        column=_percent(overlap),
        source=lambda seed: config,
        rows=(*MAIN, *ABLATIONS) if ablated else MAIN,
        metric="balanced_accuracy",
        passive=views - 1,
        rounds=rounds,
        seconds=3.0 + 2.0 * views,
    )


def _small(table: str, label: str, overlap: float, metric: str) -> Setting:
    config = _config(label, _views(table, 2, None), overlap, rounds=80)
    return Setting(
        name=f"{table}-{round(100 * overlap):02d}-A",
        group=f"{table.replace('_', ' ')}, passive party {_told(False)}",
        column=_percent(overlap),
        source=lambda seed: config,
        rows=MAIN,
        metric=metric,
        rounds=80,
        seconds=6.0,
    )


def _unseen(overlap: float, *, rounds: int = 80) -> Setting:
    """Another digit is unseen with every seed."""
    common = _config("digit", _views("digits", 2, "digit"), overlap, rounds=rounds)

    def source(seed: int) -> Config:
        return common | {"data": common["data"] | {"unseen": [str(seed % 10)]}}

    return Setting(
        name=f"unseen-{round(100 * overlap):02d}-B",
        group="digits in 2 views, one class unseen by the active party",
        column=_percent(overlap),
        source=source,
        rows=UNSEEN,
        metric="harmonic_mean",
        also=("seen_accuracy", "unseen_accuracy"),
        rounds=rounds,
    )


def _noise(tables: Path) -> Setting:
    common = _config("digit", _views("digits", 2, None), 0.10, rounds=80)

    def source(seed: int) -> Config:
        table = noise_table(tables, seed, ids=DIGITS)
        noise = {"name": "noise", "table": str(table), "id": "id"}
        return common | {"party": [*common["party"], noise]}

    return Setting(
        name="noise-10-A",
        group="digits in 2 views and a party of pure noise",
        column=_percent(0.10),
        source=source,
        rows=GATES,
        metric="balanced_accuracy",
        passive=2,
        rounds=80,
        keep_folders=True,  # the gate over the rounds is read from them
    )


def _credit(folder: Path, tables: Path, overlap: float, *, labelled: bool) -> Setting:
    drawn: Callable[[int], tuple[Path, Path]] = lru_cache(
        lambda seed: credit_tables(folder, tables, seed)
    )

    def source(seed: int) -> Config:
        guest, host = drawn(seed)
        parties: list[Config] = [
            {"name": "guest", "active": True, "table": str(guest), "id": "id"},
            {"name": "host", "table": str(host), "id": "id"},
        ]
        if labelled:
            parties[1]["label"] = LABEL
        return _config(LABEL, parties, overlap, rounds=14)

    return Setting(
        name=f"credit-{round(100 * overlap):02d}-{'B' if labelled else 'A'}",
        group=f"credit, passive party {_told(labelled)}",
        column=_percent(overlap),
        source=source,
        rows=MAIN if labelled or overlap < 0.10 else (*MAIN, *ABLATIONS),
        metric="auc",
        rounds=14,
        seconds=7.0,
    )


def _told(labelled: bool) -> str:
    return "labelled" if labelled else "unlabelled"


def _percent(overlap: float) -> str:
    return f"overlap {100 * overlap:.0f} %"


def only(setting: Setting, names: list[str]) -> Setting:
    """The setting with some of its rows, the first always among them."""
    kept = tuple(row for row in setting.rows[1:] if row.name in names)
    return replace(setting, rows=(setting.rows[0], *kept))
