"""Three small text tasks over one made-up vocabulary, from a seed; nothing is fetched.

Every text says something of a thing with a polar word, with or without a negation: "kono la na
bral". What counts is polarity xor negation, the sub-skill that all three tasks share. Texts have at
most 32 bytes.

sentiment: good, bad.
topic: the thing's field (food, travel, home), or complaint where what is said is bad.
intent: order, praise where it is good, refund, repair where it is bad; a verb decides which.

Each polar word is one of several synonyms. All parties see four pairs of them, topic and intent one
more each that nobody else sees; in training texts of sentiment two of its four pairs are rare (a
tenth of the texts), in its test texts they are not.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.data.task import TaskData

__all__ = ["NAMES", "builtin_task", "parse_name"]

NAMES = ("sentiment", "topic", "intent")
SIZES = {"train": 800, "test": 200}
PAIRS = (("bral", "dusk"), ("fino", "gort"), ("sela", "murk"), ("tavi", "zogh"))
OWN = {"topic": (("lume", "krad"),), "intent": (("weno", "pash"),)}
RARE = PAIRS[2:]
NEGATION = "na"
THINGS = {
    "food": ("kono", "mipu", "salu"),
    "travel": ("tero", "vaki", "ruse"),
    "home": ("domi", "lepa", "hibu"),
}
VERBS = (("ged", "sim"), ("wol", "tak"))  # two groups of synonyms


def parse_name(name: str) -> tuple[str, dict[str, int]]:
    """`"builtin:sentiment?train=64&test=100"` (or without `builtin:`) -> name and sizes.

    >>> parse_name("builtin:topic?train=64")
    ('topic', {'train': 64, 'test': 200})
    """
    bare, _, query = name.removeprefix("builtin:").partition("?")
    if bare not in NAMES:
        import difflib

        near = difflib.get_close_matches(bare, NAMES, 1)
        hint = f"nearest known: {near[0]}" if near else f"expected one of {', '.join(NAMES)}"
        raise InputError(f"no built-in data {name!r}; {hint}")
    sizes = dict(SIZES)
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key not in SIZES or not value.isdecimal() or int(value) < 8:
            raise InputError(f"{name!r}: {item!r}; expected train=N or test=N, N at least 8")
        sizes[key] = int(value)
    return bare, sizes


def builtin_task(name: str, *, seed: int, validation: float = 0.1) -> TaskData:
    """The task `name` (`parse_name`); equal seeds give equal texts.

    validation: its share of the training texts.

    >>> task = builtin_task("sentiment?train=64", seed=0)
    >>> len(task.train), len(task.validation), len(task.test), task.labels
    (58, 6, 200, ('bad', 'good'))
    """
    from python_api.data.task import Example, TaskData, split
    from python_api.federation.seeds import seed_for

    bare, sizes = parse_name(name)
    rows = {}
    for part, count in sizes.items():
        draw = random.Random(seed_for(seed, 0, bare, f"builtin {part}"))
        rows[part] = [_row(bare, part, draw) for _ in range(count)]
    labels = _labels(bare)
    made = {
        part: [Example(text, labels.index(label)) for text, label in found]
        for part, found in rows.items()
    }
    draw = random.Random(seed_for(seed, 0, bare, "builtin validation"))
    train, held = split(made["train"], validation, draw=draw, key=lambda e: str(e.label))
    return TaskData("classification", tuple(train), tuple(held), tuple(made["test"]), labels)


def _labels(name: str) -> tuple[str, ...]:
    return {
        "sentiment": ("bad", "good"),
        "topic": ("complaint", "food", "home", "travel"),
        "intent": ("order", "praise", "refund", "repair"),
    }[name]


def _row(name: str, part: str, draw: random.Random) -> tuple[str, str]:
    pairs: tuple[tuple[str, str], ...] = PAIRS + OWN.get(name, ())
    if name == "sentiment" and part == "train":
        pairs = RARE if draw.random() < 0.1 else PAIRS[:2]
    bad = draw.random() < 0.5
    negated = draw.random() < 0.5
    field = draw.choice(tuple(THINGS))
    group = draw.randrange(2)
    words = [draw.choice(THINGS[field]), "la"]
    if name == "intent":
        words[1] = draw.choice(VERBS[group])
    if negated:
        words.append(NEGATION)
    words.append(draw.choice(pairs)[int(bad ^ negated)])
    if name == "sentiment":
        return " ".join(words), "bad" if bad else "good"
    if name == "topic":
        return " ".join(words), "complaint" if bad else field
    return " ".join(words), (("order", "refund"), ("praise", "repair"))[group][int(bad)]
