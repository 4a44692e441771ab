"""What crosses the bus of a vertical run: sizes, secrets, and parties that break the rules."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_api.errors import RunFailed
from python_api.federation.manifest import ManifestError

from .kit import Federated, config

OUT, C, BATCH = 4, 3, 8


def listened(run: Federated) -> list[tuple[str, str, dict, dict]]:
    """(op, party, down, up) of every call, as the party's object sees it."""
    heard: list[tuple[str, str, dict, dict]] = []
    for member in run.members.values():
        for op in run.algorithm.manifest().ops:
            own = getattr(member, op)

            def answer(payload: dict, op: str = op, who: str = member.name, own: Any = own) -> dict:
                reply = own(payload)
                heard.append((op, who, dict(payload), dict(reply)))
                return reply

            setattr(member, op, answer)
    return heard


def values(payload: dict) -> set[float]:
    """The floating numbers of a payload, bit by bit."""
    return {
        v
        for tensor in payload.values()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
        for v in tensor.flatten().tolist()
    }


def test_every_op_sends_what_it_declares_and_no_secret(tmp_path: Path) -> None:
    run = Federated(config(tmp_path))
    heard = listened(run)
    run.run()
    server = run.algorithm.server
    assert {op for op, *_ in heard} == set(run.algorithm.manifest().ops)
    ids = {part: list(split.ids) for part, split in server.splits.items()}
    own = {
        name: {v for part in m.splits.values() for v in part.x.flatten().tolist()}
        for name, m in run.members.items()
    }
    for op, who, down, up in heard:
        # numbers that a passive party's columns hold do not leave it
        assert not ({v for v in values(up) if v} & own[who]), (op, who)
        for direction in (down, up):
            whole = [k for k, v in direction.items() if _is_whole(v)]
            # the only whole numbers: rows, and the counts of own rows by predicted class
            assert set(whole) <= {"rows", "kept"}
        if op == "match":
            assert down == {"split": down["split"], "ids": sorted(ids[down["split"]])}
            assert up["present"].dtype == torch.bool
        elif op == "embed":
            assert down["rows"].shape == (len(up["h"]),) and len(down["rows"]) <= BATCH
            assert len(down["rows"].unique()) == len(down["rows"])  # rows, not classes
            assert up["h"].shape[1] == OUT
        elif op == "backward":
            assert down["grad"].shape[1] == OUT and up == {}
        elif op == "evaluate":
            assert up["h"].shape == (len(down["rows"]), OUT)
        elif op == "begin":
            assert down["head"].shape == (C, OUT) and down["prior"].shape == (C,)
            assert up["kept"].shape == (C, 2)
        elif op == "lower":
            told = who == "shop"
            assert ("head" in down) == ("grad" in up) == told
            assert not told or down["head"].shape == up["grad"].shape == (C, OUT + 1)
        elif op == "share":
            labelled = {"counts", "prototypes", "withheld"} if who == "shop" else set()
            assert set(up) == {"prior", "own"} | labelled
    # and the bytes are those of these shapes
    grads = [down["grad"].numel() * 4 for op, _, down, _ in heard if op == "backward"]
    sent = [r for r in run.traffic.rows if r["op"] == "backward" and r["direction"] == "down"]
    assert [row["bytes"] for row in sent] == grads


def _is_whole(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def test_prototypes_of_rare_classes_are_withheld(tmp_path: Path) -> None:
    """Under `withhold` labelled rows, a class mean would be close to one person's row."""
    run = Federated(config(tmp_path, keys={"withhold": 1000}))
    heard = listened(run)
    run.run()
    shared = [up for op, who, _, up in heard if op == "share" and who == "shop"]
    assert shared and all(float(up["prototypes"].abs().sum()) == 0 for up in shared)
    assert all(up["withheld"] == C and float(up["counts"].sum()) == 0 for up in shared)


def test_relations_are_shared_in_place_of_prototypes(tmp_path: Path) -> None:
    run = Federated(config(tmp_path, keys={"share": "relations"}))
    heard = listened(run)
    run.run()
    shared = [up for op, who, _, up in heard if op == "share" and who == "shop"]
    assert shared and all("prototypes" not in up for up in shared)
    assert all(up["relations"].shape == (C, C) for up in shared)


# ---- a party, or a server, with a fault ----


def cheat(op: str, entry: str, make: Any) -> Any:
    """A change of the algorithm: party shop's reply to `op` holds `make(party, reply)`."""

    def change(algorithm: Any) -> None:
        member = next(m for m in algorithm.members if m.name == "shop")
        own = getattr(member, op)

        def answer(payload: dict) -> dict:
            reply = own(payload)
            return reply | {entry: make(member, reply)}

        setattr(member, op, answer)

    return change


def columns(member: Any, reply: Any) -> Tensor:
    return member.splits["train"].x


def labels(member: Any, reply: Any) -> Tensor:
    return member.splits["train"].y


REFUSED = {
    "columns under a new name": ("embed", "x", columns, "no such entry"),
    "labels under a new name": ("embed", "y", labels, "no such entry"),
    "columns in place of h": ("embed", "h", columns, r"of shape \(any, 4\)"),
    "h in float64": ("embed", "h", lambda m, r: r["h"].double(), "expected float32"),
    "labels in place of h": ("embed", "h", labels, "expected float32"),
    "labels as present bits": ("match", "present", labels, "expected bool"),
    "labels as counts": ("share", "counts", labels, "expected float32"),
    "columns as prototypes": ("share", "prototypes", columns, r"of shape \(3, 4\)"),
    "labels as kept": ("begin", "kept", labels, r"of shape \(3, 2\)"),
    "text as a loss": ("lower", "loss", lambda m, r: "p1 is an ant", "expected a number"),
    "columns as a gradient": ("lower", "grad", columns, r"of shape \(3, 5\)"),
    "nan": ("embed", "h", lambda m, r: r["h"] * float("nan"), "expected finite values"),
    "columns beside an op without a reply": ("backward", "x", columns, "no such entry"),
    "columns as text": ("evaluate", "note", lambda m, r: str(m.splits), "no such entry"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_a_party_must_not_send_does_not_leave_it(what: str, tmp_path: Path) -> None:
    op, entry, make, words = REFUSED[what]
    run = Federated(config(tmp_path), change=cheat(op, entry, make))
    with pytest.raises(RunFailed, match=rf"shop: op '{op}' up.*{entry}.*{words}"):
        run.run()


@pytest.mark.parametrize(
    ("op", "entry", "rows"), [("embed", "h", 9), ("match", "present", 1), ("evaluate", "h", 2)]
)
def test_more_or_fewer_rows_than_asked_for(op: str, entry: str, rows: int, tmp_path: Path) -> None:
    def make(member: Any, reply: dict) -> Tensor:
        return reply[entry].new_zeros(rows, *reply[entry].shape[1:])

    run = Federated(config(tmp_path), change=cheat(op, entry, make))
    words = f"op '{op}', party 'shop': entry '{entry}' has {rows} rows; expected the"
    with pytest.raises(RunFailed, match=words):
        run.run()


SENT_DOWN = {
    "labels under a new name": ("embed", lambda y, p: p | {"y": y}, "no such entry"),
    "labels as a gradient": ("backward", lambda y, p: {"grad": y}, "expected float32"),
    "labels as one column": ("backward", lambda y, p: {"grad": y[:, None].float()}, r"\(any, 4\)"),
    "labels as a head": ("begin", lambda y, p: p | {"head": y[:, None].float()}, r"\(3, 4\)"),
    "labels as a prior": ("begin", lambda y, p: p | {"prior": y.float()}, r"\(3,\)"),
    "labels as a visiting head": ("lower", lambda y, p: {"head": y[:, None].float()}, r"\(3, 5\)"),
    "labels as a text": ("match", lambda y, p: p | {"split": " ".join(map(str, y))}, "16 bytes"),
    "labels as a list": ("embed", lambda y, p: {"rows": y.tolist()}, "expected int64"),
}


@pytest.mark.parametrize("what", list(SENT_DOWN))
def test_labels_are_not_sent_in_another_form(what: str, tmp_path: Path) -> None:
    """The server's end checks too: nothing is sent to anyone."""
    op, make, words = SENT_DOWN[what]
    run = Federated(config(tmp_path))
    y = run.algorithm.server.y["train"]
    own = run.algorithm.call

    def call(name: str, payloads: Any = None) -> Any:
        if name != op:
            return own(name, payloads)
        before = len(run.traffic.rows)
        try:
            if op == "match":
                return own(name, make(y, payloads))
            return own(name, {party: make(y, sent) for party, sent in payloads.items()})
        finally:
            assert len(run.traffic.rows) == before

    run.algorithm.call = call
    with pytest.raises(ManifestError, match=rf"op '{op}' down.*{words}"):
        run.run()


ACCEPTED = {
    # columns that are as many as a representation is wide, or fewer, look like one
    "columns as h": ("embed", "h", lambda m, r: pad(m, r)),
    "a label as a number": ("lower", "loss", lambda m, r: float(m.splits["train"].y[0])),
    "labels as a number": ("share", "own", lambda m, r: number(m.splits["train"].y)),
    "labels as counts": ("share", "counts", lambda m, r: m.splits["train"].y[:C].float()),
}


def pad(member: Any, reply: dict) -> Tensor:
    x = member.splits["train"].x[: len(reply["h"])]
    return torch.nn.functional.pad(x, (0, OUT - x.shape[1]))


def number(y: Tensor) -> int:
    return sum(int(c) * C**n for n, c in enumerate(y[:30].tolist()))


@pytest.mark.parametrize("what", list(ACCEPTED))
def test_what_a_manifest_cannot_see(what: str, tmp_path: Path) -> None:
    """It holds names, types, shapes and sizes, not meaning: a party whose code is changed can put
    its columns where its representation stands. docs/federation.md says so."""
    op, entry, make = ACCEPTED[what]
    found = []

    def noted(member: Any, reply: dict) -> Any:
        found.append(make(member, reply))
        return found[-1]

    Federated(config(tmp_path, rounds=1), change=cheat(op, entry, noted)).run()
    assert found


def test_ids_are_text_and_say_what_the_tables_say(tmp_path: Path) -> None:
    """An id with a label in it is sent as it is, so long as parties have it in common."""
    run = Federated(config(tmp_path, rounds=1))
    server = run.algorithm.server
    split = server.splits["train"]
    marked = tuple(f"{id}:{y}" for id, y in zip(split.ids, server.y["train"].tolist(), strict=True))
    object.__setattr__(split, "ids", marked)
    heard = listened(run)
    run.algorithm.there = run.algorithm._attendance(run.federation)
    run.algorithm.match()
    sent = [down["ids"] for op, _, down, _ in heard if op == "match" and down["split"] == "train"]
    assert sent == [sorted(marked)] * 2
    assert int(server.present["train"].sum()) == len(marked)  # nobody else knows such ids


def test_the_order_of_the_active_partys_table_stays_there(tmp_path: Path) -> None:
    """Sorted by label it would tell every label; the bytes that travel are the same either way."""
    heard: list[Any] = []
    for again in (False, True):
        made = config(tmp_path, rounds=1)
        if again:
            head, *rows = (tmp_path / "bank.csv").read_text().splitlines()
            rows.sort(key=lambda row: row.rsplit(",", 1)[1])
            (tmp_path / "bank.csv").write_text("\n".join([head, *rows]) + "\n")
        run = Federated(made)
        heard.append(listened(run))
        run.algorithm.there = run.algorithm._attendance(run.federation)
        run.algorithm.match()
        server, own = run.algorithm.server, run.members["shop"].splits["train"].ids
        here = [id in set(own) for id in server.splits["train"].ids]
        assert server.present["train"][:, server.parties.index("shop")].tolist() == here
        assert any(here) and not all(here)
        # a row that is asked for is the row of that id
        rows = torch.tensor([row for row, it in enumerate(here) if it])
        sent = run.algorithm.asked["train"][rows]
        there = run.members["shop"]._places["train"][sent].tolist()
        assert [own[at] for at in there] == [server.splits["train"].ids[row] for row in rows]
    sent = [[down for op, _, down, _ in each if op == "match"] for each in heard]
    assert sent[0] == sent[1]


def test_a_passive_party_holds_no_label_of_the_active_one(tmp_path: Path) -> None:
    run = Federated(config(tmp_path))
    assert run.members["spa"].splits["train"].y is None  # its file has the column, it is dropped
    for member in run.members.values():
        assert member.data.truth.numel() == 0
        assert "kind" not in member.data.columns.names


# ---- a party that fails ----


def fail_once(op: str, round: int) -> Any:
    def change(algorithm: Any) -> None:
        member = next(m for m in algorithm.members if m.name == "shop")
        own, calls = getattr(member, op), [0]

        def answer(payload: dict) -> dict:
            calls[0] += 1
            if algorithm.recorder.states.keys() == set(range(1, round)) and calls[0] > 2:
                raise OSError("no route to host")
            return own(payload)

        setattr(member, op, answer)

    return change


@pytest.mark.parametrize("op", ["embed", "backward", "lower"])
def test_a_party_that_fails_is_masked_and_the_run_goes_on(
    op: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = config(tmp_path, rounds=3, keys={"min_replies": 1, "lower": 3, "upper": 3})
    run = Federated(given, change=fail_once(op, 2))
    with caplog.at_level(logging.WARNING, "fedkernels"):
        run.run()
    states = run.recorder.states
    assert set(states) == {1, 2, 3}
    assert "no route to host" in states[2]["failed/shop"]
    assert not any(key.startswith("failed/") for key in {*states[1], *states[3]})
    assert "party 'shop' is masked for the rest of the round" in caplog.text
    assert run.value("gate", party="shop", round=2) == 0 or run.algorithm.best is not None
    calls = [r["round"] for r in run.traffic.rows if (r["op"], r["party"]) == ("embed", "shop")]
    assert {1, 3} <= set(calls)
    assert run.algorithm.server.passes == 18


def test_without_min_replies_it_fails_and_names_the_party(tmp_path: Path) -> None:
    run = Federated(config(tmp_path), change=fail_once("embed", 2))
    with pytest.raises(RunFailed, match=r"round 2, op 'embed'.*shop: OSError: no route to host"):
        run.run()
    assert set(run.recorder.states) == {1}
