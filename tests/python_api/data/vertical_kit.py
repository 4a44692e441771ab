"""Small tables by parties, and the config that names them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from python_api.config import load_config
from python_api.config.schema import RunConfig
from python_api.data.loaders import write_rows


def write_tables(
    folder: Path, *, both: int = 60, own: int = 20, classes: str = "abc", suffix: str = ".csv"
) -> None:
    """bank (with y) and shop: `both` common ids, `own` more each."""
    draw = random.Random(3)
    ids = [f"c{number:03d}" for number in range(both + 2 * own)]
    draw.shuffle(ids)
    label = {id: classes[number % len(classes)] for number, id in enumerate(ids)}
    bank = [
        {"id": i, "x": draw.gauss(0, 1), "job": draw.choice("pqr"), "y": label[i]}
        for i in ids[: both + own]
    ]
    shop = [
        {"id": i, "u": draw.gauss(0, 1), "v": draw.randint(0, 9), "kind": label[i]}
        for i in [*ids[:both], *ids[both + own :]]
    ]
    write_rows(bank, folder / f"bank{suffix}")
    write_rows(shop, folder / f"shop{suffix}")


def config(folder: Path, *, suffix: str = ".csv", **keys: Any) -> RunConfig:
    """data, bank, shop: further keys of their tables; shop reads u and v alone."""
    parties = [
        {"name": "bank", "active": True, "table": f"{folder}/bank{suffix}", "id": "id"},
        {"name": "shop", "table": f"{folder}/shop{suffix}", "id": "id", "features": ["u", "v"]},
    ]
    for party in parties:
        party |= keys.get(str(party["name"]), {})
    data = {"label": "y"} | keys.get("data", {})
    more = keys.get("more", [])
    values = {"algorithm": "proto_evfl", "data": data, "party": [*parties, *more]}
    return load_config(values | {"seed": keys.get("seed", 0)})
