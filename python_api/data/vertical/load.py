"""All parties' tables to rows that an algorithm can train on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from python_api.data.vertical.columns import Columns
from python_api.data.vertical.ids import common_ids, id_notes
from python_api.data.vertical.labels import check_training, label_space, true_labels
from python_api.data.vertical.splits import deal, draw_share, long_tail
from python_api.data.vertical.tables import PartyTable, read_party
from python_api.data.vertical.types import PartyData, Split, VerticalData
from python_api.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from python_api.config import DataConfig, RunConfig, VerticalPartyConfig

__all__ = ["load_vertical"]


def load_vertical(config: RunConfig) -> VerticalData:
    """Read, match and split the tables of a vertical run; encode each with its own columns.

    In this order: test ids leave every party, then validation ids; `overlap` and `imbalance` thin
    out what is left; `unseen` classes leave the active party; columns are fitted on the training
    rows of their own party.

    Raises:
        InputError: the first thing that is wrong, with its file and line, column or key.
    """
    data = config.data
    assert data is not None and data.label is not None
    active = next(party.name for party in config.vertical_parties if party.active)
    tables = {party.name: read_party(party, data.label) for party in config.vertical_parties}
    common = common_ids(tables, active)
    labels = label_space(data, tables)
    truth, label_notes = true_labels(tables, active)
    notes = [note for table in tables.values() for note in table.notes]
    notes += [*id_notes(tables, active), *label_notes]

    parts = _split(data, tables, common, truth, active, seed=config.seed)
    train = parts.train
    if data.imbalance > 1:
        notes += _thin(data, tables, train, labels, truth, active, seed=config.seed)
    for id in list(train[active]):
        if truth.get(id) in data.unseen:
            del train[active][id]
    check_training(tables, train, labels, data.unseen, active)
    aligned = _aligned(train, active)
    if len(tables) > 1 and not aligned:
        raise InputError(
            f"data: no training id is left that {active} and another party hold; expected more "
            "common ids, or a smaller share for test"
        )
    counts = {
        "common": len(common),
        "test": len(parts.test),
        "validation": len(parts.validation),
        "aligned": len(aligned),
    }
    made: dict[str, PartyData] = {}
    for party in config.vertical_parties:
        table, own = tables[party.name], train[party.name]
        made[party.name] = _encoded(party, table, own, parts, labels, truth)
        notes += [f"{party.name}: {note}" for note in made[party.name].columns.notes]
        counts[party.name] = len(own)
        counts[f"{party.name} own"] = len(own) - len(aligned.intersection(own))
    places = tuple(labels.index(label) for label in data.unseen)
    return VerticalData(labels, places, made, counts, tuple(notes))


class _Parts:
    """ids of test and validation, in one order for all, and each party's training ids."""

    def __init__(
        self, train: dict[str, dict[str, None]], validation: list[str], test: list[str]
    ) -> None:
        self.train, self.validation, self.test = train, validation, test


def _split(
    data: DataConfig,
    tables: Mapping[str, PartyTable],
    common: Sequence[str],
    truth: Mapping[str, str],
    active: str,
    *,
    seed: int,
) -> _Parts:
    def label(id: str) -> str:
        return truth.get(id, "")

    answers = dict(zip(tables[active].ids, tables[active].labels or (), strict=True))
    known = [id for id in common if answers[id] is not None]
    rest, test = draw_share(known, data.test, seed=seed, purpose="test split", label=label)
    # a class that the active party must not see is no guide for what it keeps
    may = [id for id in rest if label(id) not in data.unseen]
    _, validation = draw_share(
        may, data.validation, seed=seed, purpose="validation split", label=label
    )
    gone = {*test, *validation}
    train = {name: {id: None for id in t.ids if id not in gone} for name, t in tables.items()}
    if data.overlap < 1 and len(tables) > 1:
        joint = [id for id in common if id not in gone]
        _, apart = draw_share(joint, 1 - data.overlap, seed=seed, purpose="overlap", label=label)
        _part(train, apart, list(tables), seed=seed, label=label)
        # what some parties share, but not all, is dealt out among them
        everywhere, shared = set(common), dict[tuple[str, ...], list[str]]()
        for id in sorted({id for own in train.values() for id in own} - everywhere):
            shared.setdefault(tuple(name for name in train if id in train[name]), []).append(id)
        for holders, ids in shared.items():
            _part(train, ids, holders, seed=seed, label=label)
    return _Parts(train, validation, test)


def _part(
    train: dict[str, dict[str, None]], ids: Sequence[str], parties: Sequence[str], **how: object
) -> None:
    """Each of `ids` stays with one of `parties`."""
    for name, hand in deal(ids, parties, **how).items():  # type: ignore[arg-type]
        for other in parties:
            if other != name:
                for id in hand:
                    train[other].pop(id, None)


def _thin(
    data: DataConfig,
    tables: Mapping[str, PartyTable],
    train: dict[str, dict[str, None]],
    labels: Sequence[str],
    truth: Mapping[str, str],
    active: str,
    *,
    seed: int,
) -> list[str]:
    """Long-tail each party's rows that are not aligned, where their class is known."""
    aligned = _aligned(train, active)
    notes = []
    for name, own in train.items():
        groups: dict[str, list[str]] = {label: [] for label in labels}
        unknown = 0
        for id in own:
            if id not in aligned and id in truth:
                groups[truth[id]].append(id)
            elif id not in aligned:
                unknown += 1
        kept = long_tail(groups, labels, data.imbalance, seed=seed, party=name)
        for ids in groups.values():
            for id in ids:
                if id not in kept:
                    del own[id]
        if unknown:
            notes.append(
                f"{name}: data.imbalance leaves {unknown} rows, whose class is not known, as they "
                "are"
            )
    return notes


def _aligned(train: Mapping[str, Collection[str]], active: str) -> set[str]:
    others = {id for name, own in train.items() if name != active for id in own}
    return others.intersection(train[active])


def _encoded(
    party: VerticalPartyConfig,
    table: PartyTable,
    train: Mapping[str, None],
    parts: _Parts,
    labels: Sequence[str],
    truth: Mapping[str, str],
) -> PartyData:
    import torch

    row_of = {id: index for index, id in enumerate(table.ids)}
    place = {label: number for number, label in enumerate(labels)}
    rows = [table.rows[row_of[id]] for id in train]
    columns = Columns.fit(rows, table.kinds, keep_constant=party.model.kind == "cnn")
    if not columns.names:
        raise InputError(
            f"party.{party.name}.table: every column of {table.rows.path} is constant in its "
            "training rows; expected one that is not"
        )

    def numbers(found: Sequence[str | None]) -> Tensor:
        return torch.tensor([place.get(label or "", -1) for label in found], dtype=torch.int64)

    def split(ids: Collection[str]) -> Split:
        chosen = [row_of[id] for id in ids]
        y = None
        if table.labels is not None:
            y = numbers([table.labels[row] for row in chosen])
        return Split(tuple(ids), columns.encode([table.rows[row] for row in chosen]), y)

    return PartyData(
        name=party.name,
        active=party.active,
        columns=columns,
        train=split(train),
        validation=split(parts.validation),
        test=split(parts.test),
        truth=numbers([truth.get(id) for id in train]),
    )
