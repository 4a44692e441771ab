"""A vertical run folder made by hand: no training, no model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from python_api.federation.checkpoint import save_round

DIGITS = tuple("0123456789")

CONFIG = """\
algorithm = "{algorithm}"
seed = 3
rounds = {rounds}
device = "cpu"

[train]
lr = 0.003
keep = "best"

[data]
label = "digit"
overlap = 0.1
imbalance = 50.0
unseen = {unseen}

[proto_evfl]
share = "{share}"
gradients = "{gradients}"
epsilon = 8.0
delta = 1e-5
preset = "default"
"""

PARTY = """
[[party]]
name = "{name}"
{more}table = "builtin:digits?views=2&view={view}"
id = "id"

[party.model]
kind = "mlp"
hidden = [64]
out = 32
"""

RULES = (
    ("match", "down", "ids", "text", "", ""),
    ("embed", "up", "h", "tensor", "float32", "(any, 32)"),
    ("backward", "down", "gradient", "tensor", "float32", "(any, 32)"),
    ("share", "up", "prototypes", "tensor", "float32", "(any, 32)"),
    ("never_called", "up", "secret", "text", "", ""),
)


def manifest() -> list[dict[str, object]]:
    keys = ("op", "direction", "entry", "kind", "dtype", "shape")
    rest = {"finite": True, "optional": False, "treatment": "plain"}
    return [dict(zip(keys, rule, strict=True)) | rest for rule in RULES]


def metric_rows(
    rounds: int, classes: tuple[str, ...], *, bonus: float = 0.0
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def add(at: int, party: str, metric: str, value: float, split: str = "test") -> None:
        row = {"round": at, "party": party, "phase": "global", "split": split, "metric": metric}
        rows.append(row | {"value": round(value, 4), "seconds": 1.0 + 0.5 * at})

    for at in range(rounds + 1):
        done = (at / rounds) ** 0.5
        balanced = 0.1 + (0.72 + bonus) * done
        for split, off in (("test", 0.0), ("validation", 0.02)):
            add(at, "left", "balanced_accuracy", balanced - off, split)
            add(at, "left", "loss", 2.3 - 1.6 * done + off, split)
            add(at, "left", "accuracy", balanced + 0.03, split)
            add(at, "left", "macro_f1", balanced - 0.01, split)
        for number, name in enumerate(classes):
            add(at, "left", f"recall_{name}", max(0.0, balanced - 0.06 * (number - 4)) % 1.0)
        for party, high in (("left", 0.6), ("right", 0.45)):
            add(at, party, "local_balanced_accuracy", 0.1 + (high - 0.1) * done)
            add(at, party, "local_accuracy", 0.12 + (high - 0.1) * done)
            add(at, party, "gate", 0.5 + (0.12 if party == "left" else -0.12) * done)
    return rows


def server_state(classes: tuple[str, ...], *, points: int = 360) -> dict[str, object]:
    draw = torch.Generator().manual_seed(0)
    count = len(classes)
    own = torch.softmax(torch.randn(count, generator=draw), 0)
    state: dict[str, object] = {
        "labels": list(classes),
        "ids": {
            "common": 1797,
            "test": 359,
            "validation": 144,
            "aligned": 129,
            "left": 711,
            "left own": 582,
            "right": 712,
            "right own": 583,
        },
        "notes": ["left: column p00 is constant and was dropped.", "right: 3 values imputed."],
        "withheld/right": 7,
        "leak/right": {
            "purity": 0.913,
            "chance": 0.134,
            "gradients": 645,
            "prototype_distance": 0.41,
            "row_distance": 0.38,
        },
    }
    for party in ("left", "right"):
        centres = 4 * torch.randn(count, 2, generator=draw)
        labels = torch.randint(0, count, (points,), generator=draw)
        rows = centres[labels] + 0.7 * torch.randn(points, 2, generator=draw)
        true = torch.softmax(1.5 * torch.randn(count, generator=draw), 0)
        kept = torch.randint(0, 40, (count,), generator=draw)
        state |= {
            f"gate/{party}": own if party == "left" else 1 - own,
            f"prior/{party}/true": true,
            f"prior/{party}/estimated": torch.softmax(
                true.log() + 0.3 * torch.randn(count, generator=draw), 0
            ),
            f"prior/{party}/mixed": (true + 1 / count) / 2,
            f"selected/{party}": torch.stack([kept, kept + 20], dim=1),
            f"selected_true/{party}": torch.stack([kept // 2, kept + 10], dim=1),
            f"selected_rounds/{party}": torch.stack(
                [torch.stack([kept * n // 8, kept + 20], dim=1) for n in range(1, 9)]
            ),
            f"plane/{party}/rows": rows,
            f"plane/{party}/labels": labels,
            f"plane/{party}/prototypes": centres,
        }
    state["prior/global"] = torch.full((count,), 1 / count)
    return state


def traffic_rows(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for at in range(rounds + 1):
        sent = [("evaluate", "down", 2872), ("evaluate", "up", 359 * 128)]
        sent += [("match", "down", 9000), ("match", "up", 1797)] if at == 0 else []
        if at:
            sent += [("embed", "down", 5000), ("embed", "up", 80_000), ("backward", "down", 80_000)]
            sent += [("begin", "down", 1400), ("begin", "up", 160)]
            sent += [("share", "up", 1400), ("share", "down", 80)]
        rows += [
            {
                "round": at,
                "party": "right",
                "op": op,
                "direction": direction,
                "bytes": size,
                "wire_bytes": size + 120,
            }
            for op, direction, size in sent
        ]
    return rows


def write_run(
    folder: Path,
    *,
    algorithm: str = "proto_evfl",
    rounds: int = 40,
    classes: tuple[str, ...] = DIGITS,
    share: str = "prototypes",
    gradients: str = "exact",
    unseen: tuple[str, ...] = (),
    bonus: float = 0.0,
    status: str = "finished",
    state: bool = True,
    metrics: bool = True,
    change: dict[str, object] | None = None,
) -> Path:
    """change: entries of the server's state that are put over the usual ones; None removes one."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        CONFIG.format(
            algorithm=algorithm,
            rounds=rounds,
            share=share,
            gradients=gradients,
            unseen=json.dumps(list(unseen)),
        )
        + PARTY.format(name="left", more="active = true\n", view=1)
        + PARTY.format(name="right", more="", view=2)
    )
    told = {"status": status, "algorithm": algorithm, "round": rounds, "rounds": rounds}
    (folder / "status.json").write_text(
        json.dumps(told | {"started": "2026-11-24T09:00:00Z", "seconds": 61.5, "reason": None})
    )
    (folder / "environment.json").write_text(json.dumps({"threads": 2, "manifest": manifest()}))
    for name, rows in (
        ("metrics", metric_rows(rounds, classes, bonus=bonus) if metrics else []),
        ("traffic", traffic_rows(rounds) if algorithm != "centralised" else []),
    ):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    native = folder / "models" / "right" / "native"
    native.mkdir(parents=True)
    parts: list[dict[str, object]] = [{"value": {}, "missing": None}] * 29
    parts += [{"outputs": [{}, {}, {}]}, {"value": None, "missing": None}]
    (native / "party.json").write_text(json.dumps({"columns": {"parts": parts}}))
    if state:
        kept = server_state(classes) | (change or {})
        kept = {key: value for key, value in kept.items() if value is not None}
        save_round(folder / "checkpoints", rounds, {"server": kept})
    return folder
