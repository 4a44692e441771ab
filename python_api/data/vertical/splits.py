"""Test and validation ids, and how little the parties keep in common; all by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from python_api.data.task import split
from python_api.federation.seeds import seed_for

__all__ = ["deal", "draw_share", "long_tail"]


def draw_share(
    ids: Sequence[str], share: float, *, seed: int, purpose: str, label: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """(rest, drawn): `share` of the ids of each class; at least one id of a class is rest."""
    draw = random.Random(seed_for(seed, 0, "all", purpose))
    return split(ids, share, draw=draw, key=label)


def deal(
    ids: Sequence[str], parties: Sequence[str], *, seed: int, label: Callable[[str], str]
) -> dict[str, list[str]]:
    """Each id to one party, every class evenly; parties differ by at most one id in all.

    >>> hands = deal(["a", "b", "c", "d"], ["bank", "shop"], seed=0, label=lambda id: "x")
    >>> sorted(map(len, hands.values()))
    [2, 2]
    """
    draw = random.Random(seed_for(seed, 0, "all", "unaligned"))
    hands: dict[str, list[str]] = {party: [] for party in parties}
    turn = draw.randrange(len(parties))
    for name in sorted({label(id) for id in ids}):
        members = [id for id in ids if label(id) == name]
        draw.shuffle(members)
        for id in members:
            hands[parties[turn % len(parties)]].append(id)
            turn += 1
    return hands


def long_tail(
    groups: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    imbalance: float,
    *,
    seed: int,
    party: str,
) -> set[str]:
    """The ids of one party's unaligned rows that stay: n_c = n_max * imbalance^(-rank/(C - 1)).

    groups: class -> its ids. The ranks are an order of `classes` of the party's own; a class keeps
    at least one row and never more than it has.

    >>> groups = {"a": list("0123456789"), "b": list("abcdefghij")}
    >>> len(long_tail(groups, ["a", "b"], 5.0, seed=0, party="shop"))
    12
    """
    draw = random.Random(seed_for(seed, 0, party, "class order"))
    order = list(classes)
    draw.shuffle(order)
    most = max((len(ids) for ids in groups.values()), default=0)
    kept: set[str] = set()
    for rank, name in enumerate(order):
        ids = sorted(groups.get(name, ()))
        wanted = most * imbalance ** (-rank / max(1, len(order) - 1))
        kept.update(draw.sample(ids, min(len(ids), max(1, round(wanted)))))
    return kept
