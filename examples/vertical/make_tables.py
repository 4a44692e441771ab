"""Writes bank.csv and shop.csv: two views of made-up customers, some of whom both know.

    python examples/vertical/make_tables.py [FOLDER]

Whether a loan is repaid depends on what the bank sees (income against loan) and on what the shop
sees (how much is sent back); either alone tells half of it.
"""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

BANK, SHOP, BOTH = 600, 650, 480


def customer(draw: random.Random) -> tuple[dict[str, object], dict[str, object]]:
    """One customer as the bank knows them, and as the shop does."""
    thrift, habit = draw.gauss(0, 1), draw.gauss(0, 1)
    income = round(math.exp(8 + 0.5 * thrift + draw.gauss(0, 0.15)))
    loan = round(math.exp(9.2 - 0.3 * thrift + draw.gauss(0, 0.4)))
    orders = 1 + round(math.exp(2.2 + draw.gauss(0, 0.5)))
    returns = sum(draw.random() < 1 / (1 + math.exp(1.2 + 1.5 * habit)) for _ in range(orders))
    score = thrift + habit + draw.gauss(0, 0.3)
    work = ("employed", "self-employed", "none") if thrift > -0.5 else ("none", "student")
    bank = {
        "age": draw.randint(19, 78),
        "income": "" if draw.random() < 0.05 else income,
        "loan": loan,
        "work": draw.choice(work),
        "repaid": "yes" if score > -0.4 else "late" if score > -1.5 else "no",
    }
    shop = {
        "orders": orders,
        "returns": returns,
        "basket": "NA" if draw.random() < 0.08 else round(draw.lognormvariate(3.5, 0.4), 2),
        "pays": draw.choice(("card", "card", "invoice") if habit > 0 else ("invoice", "later")),
    }
    return bank, shop


def main(folder: Path) -> None:
    draw = random.Random(7)
    count = BANK + SHOP - BOTH
    ids = [f"C{number:04d}" for number in draw.sample(range(1, 10_000), count)]
    both = dict(zip(ids, (customer(draw) for _ in ids), strict=True))
    tables = (
        ("bank", {id: both[id][0] for id in ids[:BANK]}),
        ("shop", {id: both[id][1] for id in draw.sample(ids[BANK - BOTH :], SHOP)}),
    )
    for name, rows in tables:
        columns = ["customer", *next(iter(rows.values()))]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({"customer": id} | row for id, row in rows.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
