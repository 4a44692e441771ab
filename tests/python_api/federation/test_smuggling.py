"""What a party may put beside the declared entries: nothing."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import msgpack
import pytest
import torch

from python_api.errors import InputError, RunFailed
from python_api.federation import wire
from python_api.federation.wire import PREFIX, WireError, decode, encode

SECRET = "all my private rows " * 2000
VECTOR = torch.ones(4)


def frame(entries, meta, tensors, *, header=None, body=None):
    """A frame with a right checksum that `encode` might never write."""
    header = msgpack.packb({"meta": meta, "entries": entries}) if header is None else header
    body = wire.pack_tensors(tensors) if body is None else body
    digest = hashlib.sha256(header + body).digest()
    return PREFIX.pack(b"FEDK", 1, len(header), len(body), digest) + header + body


def reply(toy, answer):
    """What the server makes of a frame that party b answers `upload` with."""
    federation, _ = toy.federation()
    honest = federation._exchange
    federation._exchange = lambda party, *rest: answer if party == "b" else honest(party, *rest)
    return federation.call("upload", min_replies=0)


def refusal(reason, more=(), **meta):
    entries = [["reason", "text", None], *([name, "tensor", None] for name in dict(more))]
    tensors = {"reason": wire._blob(reason.encode())} | dict(more)
    return frame(entries, {"op": "upload", "round": 0, "failed": 1} | meta, tensors)


def body_with(header: dict, data: bytes, *, spaces: int = 0) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + spaces)
    return len(text).to_bytes(8, "little") + text + data


ENTRY, META = [["x", "tensor", None]], {"op": "upload", "round": 0}
PLAIN = {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def test_the_honest_frame_passes(toy):
    body = body_with(PLAIN, bytes(16))
    assert list(reply(toy, frame(ENTRY, META, {"x": VECTOR})).ok) == ["a", "b", "c"]
    assert list(reply(toy, frame(ENTRY, META, {}, body=body)).ok) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (frame([["x", "tensor", SECRET]], META, {"x": VECTOR}), "has no value in the header"),
        (frame(ENTRY, META | {"leak": SECRET}, {"x": VECTOR}), "meta may hold op, round"),
        (frame(ENTRY, META | {"op": SECRET}, {"x": VECTOR}), "too long"),
        (frame(ENTRY, META | {"bad_input": 1}, {"x": VECTOR}), "beside 'failed' only"),
        (frame(ENTRY, META | {"failed": 7}, {"x": VECTOR}), "are 1 where they stand"),
        (
            frame(
                ENTRY, META, {}, body=body_with({"__metadata__": {"k": SECRET}} | PLAIN, bytes(16))
            ),
            "not in the form",
        ),
        (frame(ENTRY, META, {}, body=body_with(PLAIN, bytes(16), spaces=800)), "not in the form"),
        (
            frame(ENTRY, META | {"round": "0"}, {"x": VECTOR}),
            "'round': expected an integer, got str",
        ),
        (frame(ENTRY, META | {"round": True}, {"x": VECTOR}), "'round': expected an integer"),
        (frame(ENTRY, META | {"op": 3}, {"x": VECTOR}), "'op': expected a text, got int"),
    ],
)
def test_what_is_not_declared_is_refused(toy, answer, words):
    got = reply(toy, answer)
    assert list(got.ok) == ["a", "c"] and words in got.failed["b"]
    assert SECRET[:20] * 2 not in got.failed["b"] and len(got.failed["b"]) <= 500


def test_a_number_in_more_bytes_than_it_needs_is_refused():
    plain = msgpack.packb({"meta": {}, "entries": [["n", "number", 1]]})
    assert decode(frame([], {}, {}, header=plain)) == {"n": 1}
    with pytest.raises(WireError, match="not in the form"):
        decode(frame([], {}, {}, header=plain[:-1] + b"\xcf" + bytes(7) + b"\x01"))
    with pytest.raises(WireError, match="expected a number"):
        decode(frame([["n", "number", 2**64 - 1]], {}, {}))


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_text_has_no_second_value(kind):
    blob = {"n": wire._blob(b"ab")}
    assert decode(frame([["n", kind, None]], {}, blob))["n"] in ("ab", b"ab")
    with pytest.raises(WireError, match="has no value in the header"):
        decode(frame([["n", kind, SECRET]], {}, blob))


def test_a_refusal_carries_one_line_and_nothing_else(toy):
    assert reply(toy, refusal("disk full")).failed == {"b": "disk full"}
    got = reply(toy, refusal("disk full", {"weights": torch.randn(1000, 10)})).failed["b"]
    assert "entry 'weights', party 'b': expected no such entry (declared: reason)" in got
    assert "expected at most 500 bytes, got 1000000" in reply(toy, refusal("x" * 10**6)).failed["b"]
    assert reply(toy, refusal("one\nround 9 done\x1b[2J")).failed["b"] == "one round 9 done?[2J"
    nothing = frame([], {"op": "upload", "round": 0, "failed": 1}, {})
    assert (
        "entry 'reason', party 'b': expected text, got nothing" in reply(toy, nothing).failed["b"]
    )
    other = reply(toy, refusal("disk full", op="fit")).failed["b"]
    assert other == "expected a reply to 'upload' of round 0, got 'fit' of round 0"


def test_words_alone_make_no_bad_input(toy):
    federation, parties = toy.federation()
    parties["b"].fault["upload"] = lambda party: (_ for _ in ()).throw(
        RunFailed("bad input: train.csv:3: no column")
    )
    with pytest.raises(RunFailed, match=r"b: bad input: train.csv:3"):
        federation.call("upload")
    federation, _ = toy.federation()
    federation._exchange = lambda *rest: refusal("train.csv:3: no column", bad_input=1)
    with pytest.raises(InputError, match=r"^train.csv:3: no column$"):
        federation.call("upload")


def test_a_party_names_the_round_that_came_as_a_text(toy):
    federation, _ = toy.federation()
    honest = federation._exchange
    down = {"round": "0"}
    federation._exchange = lambda party, op, sent, call: honest(
        party, op, frame([], {"op": op} | down, {}), call
    )
    failed = federation.call("upload", min_replies=0).failed
    assert failed["a"] == "header: meta 'round': expected an integer, got str '0'"
    down.clear()
    failed = federation.call("upload", min_replies=0).failed
    assert failed["a"] == "header: meta must name the round"


@pytest.mark.parametrize("filler", [b"\x80", b"\x90", b"\x92\x90\x90"])
def test_a_header_unfolds_to_a_bounded_size(filler):
    """docs/federation.md: at most 100 MiB for a header at its cap."""
    count = (wire.MAX_HEADER - 64) // len(filler)
    start = b"\x82\xa4meta\x80\xa7entries\xdd" + count.to_bytes(4, "big")
    sent = frame([], {}, {}, header=start + filler * count)
    tracemalloc.start()
    with pytest.raises(WireError):
        decode(sent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 << 20 < peak < 100 << 20
    with pytest.raises(WireError, match="above the cap"):
        decode(frame([], {}, {}, header=bytes(wire.MAX_HEADER + 1)))
    with pytest.raises(WireError, match="above the cap"):
        decode(frame([], {}, {}, body=(wire.MAX_HEADER + 1).to_bytes(8, "little")))


def test_empty_texts_count_in_the_cap_of_a_list():
    from python_api.federation import Rule

    rule = Rule(kind="text", max_bytes=5)
    assert rule.why_not([""] * 5, {}) is None and rule.why_not("", {}) is None
    assert rule.why_not([""] * 6, {}) == "expected at most 5 bytes, got 6"
    assert decode(encode({"t": ["", "a"]}))["t"] == ["", "a"]
