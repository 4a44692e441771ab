"""The bus: bytes by hand, failures by name, the same result from the same seed."""

from __future__ import annotations

import json
import time

import pytest
import torch

from python_api.errors import InputError, RunFailed
from python_api.federation import ManifestError, Replies, TrafficLog


def fail(error):
    def fault(party):
        raise error

    return fault


def one_round(federation, t=1, **options):
    federation.round = t
    federation.call("download", {"mean": torch.zeros(4)})
    federation.call("fit")
    return federation.call("upload", **options)


def test_replies_come_in_party_order_and_sum_in_it(toy):
    federation, _ = toy.federation()
    replies = federation.call("upload", to=["c", "a"])
    assert list(replies.ok) == ["a", "c"] and not replies.failed
    assert replies.sum("x").tolist() == [4.0] * 4  # 1 + 3
    assert replies.sum("x", weights={"a": 0.5, "c": 2.0}).tolist() == [6.5] * 4
    # (1e8 + 1) - 1e8 is 0 in float32, another order would give 1
    parts = {"a": 1e8, "b": 1.0, "c": -1e8}
    floats = Replies({name: {"x": torch.tensor([value])} for name, value in parts.items()})
    assert floats.sum("x").item() == 0.0
    assert floats.sum("x", dtype=torch.float64).item() == 1.0
    with pytest.raises(ValueError, match="no reply"):
        Replies({}).sum("x")
    with pytest.raises(TypeError, match="no tensor"):
        Replies({"a": {"x": 1}}).sum("x")


def test_traffic_rows_by_hand(toy, tmp_path):
    federation, _ = toy.federation()
    federation.traffic = TrafficLog(tmp_path / "traffic.jsonl")
    one_round(federation, t=2)
    federation.call("evaluate")
    federation.traffic.close()
    rows = [json.loads(line) for line in (tmp_path / "traffic.jsonl").read_text().splitlines()]
    assert rows == federation.traffic.rows and len(rows) == 4 * 3 * 2
    keys = ["round", "party", "op", "direction", "bytes", "wire_bytes"]
    assert all(list(row) == keys and row["round"] == 2 for row in rows)

    def of(op, direction):
        return [r for r in rows if (r["op"], r["direction"]) == (op, direction)]

    # A vector of 4 float32; a broadcast counts once per receiver; a number counts 0.
    assert [(r["party"], r["bytes"]) for r in of("download", "down")] == [
        ("a", 16),
        ("b", 16),
        ("c", 16),
    ]
    assert [r["bytes"] for r in of("upload", "up")] == [16, 16, 16]
    assert sum(r["bytes"] for r in of("evaluate", "up")) == 0
    # prefix 4 + 1 + 4 + 8 + 32; msgpack: each text and list costs 1 + its length, a small int 1
    prefix = 49
    meta = 1 + 5 + (1 + 3 + 7 + 6 + 1) + 8  # {meta: {op: "upload", round: 2}, entries:
    entry = 1 + (1 + 2 + 7 + 1)  # [["x", "tensor", nil]]}
    text = len('{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
    body = 8 + (text + 7) // 8 * 8 + 16
    assert [r["wire_bytes"] for r in of("upload", "up")] == [prefix + meta + entry + body] * 3
    assert [r["wire_bytes"] for r in of("upload", "down")] == [prefix + meta + 1] * 3
    # the reply to `evaluate`: op is 2 letters longer; [["distance", "number", float64]]
    assert [r["wire_bytes"] for r in of("evaluate", "up")] == [
        prefix + meta + 2 + 1 + (1 + 9 + 7 + 9)
    ] * 3


def test_replies_report_their_bytes(toy):
    federation, _ = toy.federation()
    replies = federation.call("download", {"mean": torch.zeros(4)})
    assert replies.bytes == 48 and replies.seconds > 0


def test_nothing_is_aliased(toy):
    federation, parties = toy.federation()
    sent = torch.zeros(4)
    federation.call("download", {"mean": sent})
    parties["a"].mean += 1
    assert sent.sum() == 0 and parties["b"].mean.sum() == 0
    got = federation.call("upload").ok["a"]["x"]
    got += 1
    assert parties["a"].x.tolist() == [1.0] * 4


def test_payloads_per_party(toy):
    federation, parties = toy.federation()
    federation.call("download", {n: {"mean": torch.full((4,), float(ord(n)))} for n in "ca"})
    assert parties["a"].mean[0] == 97 and parties["c"].mean[0] == 99 and parties["b"].mean[0] == 0
    with pytest.raises(ValueError, match="no payload for party 'b'"):
        federation.call("download", {"a": {"mean": torch.zeros(4)}}, to=["a", "b"])
    with pytest.raises(ValueError, match="to must name parties"):
        federation.call("upload", to=["a", "x"])
    with pytest.raises(ValueError, match="to must name parties"):
        federation.call("upload", to=["a", "a"])


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"x": torch.tensor([1, 2, float("nan"), 4])}, "expected finite values, got 1 NaN"),
        ({"x": torch.tensor([1, float("inf"), 3, 4])}, "expected finite values"),
        ({"x": torch.zeros(5)}, "expected float32 of shape (4,), got float32 of shape (5,)"),
        ({"x": torch.zeros(4).double()}, "got float64 of shape (4,)"),
        ({"x": torch.zeros(4, dtype=torch.int64)}, "got int64 of shape (4,)"),
        ({"x": torch.zeros(4), "data": ["private"]}, "entry 'data', party 'b': expected no such"),
        ({"y": torch.zeros(4)}, "entry 'y'"),
        ({"x": "1 2 3 4"}, "got text of 7 characters"),
        ([1, 2], "expected a dict of entries, got list"),
    ],
)
def test_a_bad_reply_is_refused_named_and_the_round_goes_on(toy, reply, words):
    federation, parties = toy.federation()
    parties["b"].fault["upload"] = lambda party: reply
    with pytest.raises(RunFailed, match="2 of 3 parties replied, 3 needed") as caught:
        one_round(federation)
    assert words in str(caught.value) and "party 'b'" in str(caught.value)
    replies = federation.call("upload", min_replies=2)
    assert list(replies.ok) == ["a", "c"] and words in replies.failed["b"]


def test_what_is_not_declared_never_leaves_the_party(toy):
    federation, parties = toy.federation()
    parties["b"].fault["upload"] = lambda party: {"x": torch.zeros(4), "data": ["secret row"] * 99}
    federation.call("upload", min_replies=0)
    left = [row for row in federation.traffic.rows if row["party"] == "b"]
    reason = federation.call("upload", min_replies=0).failed["b"]
    assert "secret" not in reason
    assert [row["bytes"] for row in left] == [0, len(reason)]  # only the refusal's own words


def test_a_bad_payload_of_the_server_is_refused_before_anything_is_sent(toy):
    federation, _ = toy.federation()
    for payload in (
        {"mean": torch.zeros(3)},
        {"mean": torch.full((4,), float("nan"))},
        {"mean": torch.zeros(4), "more": 1},
        {},
        {"a": {"mean": torch.zeros(4)}, "b": {"mean": torch.zeros(9)}},
    ):
        with pytest.raises(ManifestError, match="op 'download' down"):
            federation.call("download", payload)
    with pytest.raises(ManifestError, match="op 'save'"):
        federation.call("save")
    assert federation.traffic.rows == []


def test_an_exception_is_that_partys_failure(toy):
    federation, parties = toy.federation()
    parties["a"].fault["upload"] = fail(KeyError("row 7"))
    parties["c"].fault["upload"] = fail(MemoryError())
    with pytest.raises(RunFailed) as caught:
        federation.call("upload")
    assert str(caught.value) == (
        "round 0, op 'upload': 1 of 3 parties replied, 3 needed "
        "(a: KeyError: 'row 7'; c: MemoryError)"
    )
    assert list(federation.call("upload", min_replies=1).ok) == ["b"]
    with pytest.raises(RunFailed):
        federation.call("upload", min_replies=2)
    parties["b"].fault["upload"] = fail(ValueError("x" * 5000))
    assert len(federation.call("upload", min_replies=0).failed["b"]) == 500


def test_an_op_without_a_method_is_named(toy):
    federation, parties = toy.federation()
    parties["a"].upload = None
    assert "no such method" in federation.call("upload", min_replies=2).failed["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_passes_through(toy, error):
    federation, parties = toy.federation()
    parties["b"].fault["upload"] = fail(error)
    with pytest.raises(type(error)):
        federation.call("upload", min_replies=0)


def test_a_late_reply_is_refused(toy):
    federation, parties = toy.federation()
    parties["b"].fault["upload"] = lambda party: time.sleep(0.06)
    replies = federation.call("upload", deadline=0.05, min_replies=2)
    assert list(replies.ok) == ["a", "c"]
    assert replies.failed["b"].startswith("expected a reply within 0.05 s, got it after 0.1 s")


def test_a_frame_torn_on_the_way_is_refused(toy):
    federation, _ = toy.federation()
    whole = federation._exchange

    def tear(party, op, frame, call):
        answer = whole(party, op, frame, call)
        return answer[:-1] + bytes([answer[-1] ^ 1]) if party == "b" else answer

    federation._exchange = tear
    replies = federation.call("upload", min_replies=2)
    assert replies.failed == {"b": "checksum: the frame is not what its sender wrote"}


def test_a_reply_to_another_round_is_refused(toy):
    federation, _ = toy.federation()
    federation.round = 1
    whole = federation._exchange
    kept = {}

    def replay(party, op, frame, call):
        return kept.setdefault(party, whole(party, op, frame, call))

    federation._exchange = replay
    federation.call("upload")
    federation.round = 2
    failed = federation.call("upload", min_replies=0).failed
    assert failed["a"] == "expected a reply to 'upload' of round 2, got 'upload' of round 1"


def test_min_replies_must_be_possible(toy):
    federation, _ = toy.federation()
    for count in (-1, 4):
        with pytest.raises(ValueError, match="min_replies must be 0 to 3"):
            federation.call("upload", min_replies=count)


def test_two_parties_of_one_name_are_refused(toy):
    from python_api.federation import LocalFederation

    with pytest.raises(ValueError, match="two parties are named 'a'"):
        LocalFederation([toy.MeanParty("a", 1), toy.MeanParty("a", 2)], toy.manifest)


def test_the_same_seed_gives_the_same_bytes(toy):
    def final(seed, noise=0):
        torch.manual_seed(noise)  # what the caller did to the global stream must not matter
        federation, _ = toy.federation(seed=seed)
        for t in (1, 2):
            torch.rand(noise)
            replies = one_round(federation, t)
        return replies.sum("x"), federation.traffic.rows

    (one, rows), (two, same) = final(0), final(0, noise=5)
    assert torch.equal(one, two) and rows == same
    assert not torch.equal(one, final(1)[0])


def test_a_partys_stream_is_its_own(toy):
    """The draws of b are the same whether a runs or fails, and differ by party and by call."""
    federation, parties = toy.federation()
    federation.call("fit", to=["b"])
    alone = parties["b"].x
    federation, parties = toy.federation()
    for party in parties.values():
        party.x = torch.full((4,), 2.0)
    federation.call("fit")
    assert torch.equal(parties["b"].x, alone) and not torch.equal(parties["a"].x, alone)
    parties["b"].x = torch.full((4,), 2.0)
    federation.call("fit")
    assert not torch.equal(parties["b"].x, alone)
    parties["b"].x = torch.full((4,), 2.0)
    federation.round = 0  # a round that starts again draws again
    federation.call("fit")
    assert torch.equal(parties["b"].x, alone)


def test_the_callers_stream_is_left_alone(toy):
    federation, _ = toy.federation()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    federation.call("fit")
    assert torch.equal(torch.rand(3), expected)


def test_bad_input_inside_an_op_stays_bad_input(toy):
    federation, parties = toy.federation()
    line = "party.b.task.train: no item is left to train on"
    parties["b"].fault["upload"] = fail(InputError(line))
    with pytest.raises(InputError) as caught:
        federation.call("upload")
    assert str(caught.value) == line
    assert federation.call("upload", min_replies=2).failed == {"b": line}
    parties["b"].fault["upload"] = fail(ValueError("another"))
    with pytest.raises(RunFailed, match="b: ValueError: another"):
        federation.call("upload")
