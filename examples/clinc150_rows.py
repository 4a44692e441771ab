"""Turns CLINC150's data_full.json into rows of a few intents.

    python examples/clinc150_rows.py data/clinc150/data_full.json --out data/clinc150
    python examples/clinc150_rows.py data_full.json --intents balance transfer pay_bill

Writes train.jsonl (the file's train and val parts) and test.jsonl, with the keys text and intent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

INTENTS = (
    "balance",
    "book_flight",
    "card_declined",
    "pay_bill",
    "play_music",
    "recipe",
    "reminder",
    "report_lost_card",
    "transfer",
    "weather",
)


def rows(data: dict[str, list], parts: Sequence[str], intents: Sequence[str]) -> list[dict]:
    """The rows of some parts whose intent is wanted, in file order.

    >>> rows({"train": [["hi", "greeting"], ["bye", "goodbye"]]}, ["train"], ["goodbye"])
    [{'text': 'bye', 'intent': 'goodbye'}]
    """
    wanted = set(intents)
    return [
        {"text": text, "intent": intent}
        for part in parts
        for text, intent in data[part]
        if intent in wanted
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="data_full.json")
    parser.add_argument("--out", type=Path, default=Path("."), help="a folder")
    parser.add_argument("--intents", nargs="+", default=list(INTENTS), metavar="INTENT")
    options = parser.parse_args()
    data = json.loads(options.source.read_text(encoding="utf-8"))
    known = {intent for _, intent in data["train"]}
    if unknown := [intent for intent in options.intents if intent not in known]:
        print(f"--intents: {unknown[0]!r} is not in {options.source}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, parts in (("train", ("train", "val")), ("test", ("test",))):
        found = rows(data, parts, options.intents)
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        print(f"{len(found)} rows: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
