"""The frame: what goes in comes out bit for bit, and nothing else is ever accepted."""

from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc

import msgpack
import pytest
import torch

from python_api.federation import wire
from python_api.federation.wire import WireError, decode, decode_message, encode, payload_bytes

PREFIX = struct.Struct("<4sBIQ32s")
PAYLOAD = {
    "t": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "note": ["a", "", "né"],
    "name": "shop",
    "loss": 0.25,
    "raw": b"\x00\xff",
}


def forge(header: bytes, body: bytes, *, sizes: tuple[int, int] | None = None) -> bytes:
    """A frame with a right checksum: what a hostile peer would send."""
    digest = hashlib.sha256(header + body).digest()
    head, rest = sizes or (len(header), len(body))
    return PREFIX.pack(b"FEDK", 1, head, rest, digest) + header + body


def header_of(entries, meta=None) -> bytes:
    return msgpack.packb({"meta": meta or {}, "entries": entries})


@pytest.mark.parametrize("dtype", wire.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape_returns_bit_for_bit(dtype, shape):
    if dtype.is_floating_point:
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    else:
        draw = torch.randint(0, 2 if dtype == torch.bool else 100, shape)
        tensor = draw.to(dtype)
    back = decode(encode({"x": tensor}))["x"]
    assert back.dtype == dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_nan_infinity_and_negative_zero_keep_their_bits():
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    back = decode(encode({"x": tensor}))["x"]
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[1:],
        lambda x: x[:1].expand(5, 6),
        lambda x: x.requires_grad_(),
        lambda x: torch.nn.Parameter(x),
    ],
    ids=["transposed", "strided", "offset", "expanded", "with grad", "parameter"],
)
def test_a_view_travels_as_its_values(make):
    tensor = make(torch.arange(24.0).reshape(4, 6))
    back = decode(encode({"x": tensor}))["x"]
    assert torch.equal(back, tensor.detach()) and back.is_contiguous() and not back.requires_grad


def test_views_of_one_storage_travel_side_by_side():
    whole = torch.arange(8.0)
    back = decode(encode({"a": whole, "b": whole[:4], "c": whole[4:], "d": whole}))
    assert torch.equal(back["a"], whole) and torch.equal(back["d"], whole)
    assert torch.equal(back["b"], whole[:4]) and torch.equal(back["c"], whole[4:])


def test_what_arrives_shares_no_memory():
    sent = torch.zeros(3)
    frame = encode({"x": sent})
    first, second = decode(frame)["x"], decode(frame)["x"]
    first += 1
    assert sent.sum() == 0 and second.sum() == 0


def test_texts_numbers_and_bytes_return_with_their_types_and_order():
    payload = {"z": "", "b": b"", "n": -(2**63), "f": 1e300, "flag": True, "l": [], "t": ["", "x"]}
    back = decode(encode(payload))
    assert back == payload and list(back) == list(payload)
    assert type(back["n"]) is int and type(back["f"]) is float and back["flag"] is True


def test_equal_payloads_give_equal_frames_and_meta_returns():
    assert encode(PAYLOAD, {"op": "x"}) == encode(dict(PAYLOAD), {"op": "x"})
    assert decode_message(encode({}, {"op": "upload", "round": 3})) == (
        {},
        {"op": "upload", "round": 3},
    )


def test_payload_bytes_counts_tensors_texts_and_blobs():
    # 6 * 4 + 2 * 2 + ("a" 1, "" 0, "né" 3) + "shop" 4 + number 0 + 2
    assert payload_bytes(PAYLOAD) == 24 + 4 + 4 + 4 + 0 + 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.eye(2).to_sparse(), "dense"),
        (torch.empty(2, device="meta"), "dense"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (2**63, "64 bits"),
        ("\ud800", "Unicode"),
        (["a", 1], "list of texts"),
        (None, "NoneType"),
        ({"a": 1}, "dict"),
        (object(), "object"),
    ],
    ids=["sparse", "meta", "complex", "int", "surrogate", "mixed list", "None", "dict", "object"],
)
def test_what_cannot_travel_is_named(value, words):
    with pytest.raises(WireError, match="entry 'x'") as caught:
        encode({"x": value})
    assert words in str(caught.value)


def test_names_are_checked():
    for name in ("", "n" * 257):
        with pytest.raises(WireError, match="name"):
            encode({name: 1})


def test_every_truncation_is_refused():
    frame = encode(PAYLOAD)
    for length in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:length])
    with pytest.raises(WireError):
        decode(frame + b"\x00")


def test_every_single_byte_flip_is_refused():
    frame = encode(PAYLOAD)
    for at in range(len(frame)):
        for bit in (1, 128):
            torn = bytearray(frame)
            torn[at] ^= bit
            with pytest.raises(WireError):
                decode(bytes(torn))


def test_flips_behind_a_right_checksum_never_crash_or_allocate():
    """A hostile peer signs what it sends: a payload or a WireError comes out, in little memory."""
    frame = encode(PAYLOAD, {"op": "upload", "round": 1})
    _, _, head, _, _ = PREFIX.unpack_from(frame)
    header, body = frame[PREFIX.size : PREFIX.size + head], frame[PREFIX.size + head :]
    draw = random.Random(0)
    refused = 0
    tracemalloc.start()
    for trial in range(4000):
        torn = [bytearray(header), bytearray(body)]
        for _ in range(draw.choice((1, 1, 2, 4))):
            part = torn[trial % 2]
            part[draw.randrange(len(part))] = draw.randrange(256)
        try:
            decode(forge(bytes(torn[0]), bytes(torn[1])))
        except WireError:
            refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 1000  # the rest are flips within values, which only the checksum can see
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "frame",
    [
        forge(b"", b"", sizes=(0xFFFFFFFF, 0)),
        forge(b"", b"", sizes=(0, 2**63)),
        forge(b"\xdd\xff\xff\xff\xff", b""),  # a msgpack array of 4 billion entries
        forge(b"\xc6\xff\xff\xff\xff", b""),  # a msgpack blob of 4 GB
        forge(b"\x91" * 5000, b""),  # nested 5,000 deep
        forge(header_of([]), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),  # a body header of 2^63 bytes
        forge(header_of([["x", "tensor", None]]), b""),
        forge(header_of([["x", "number", None]]), b""),
        forge(header_of([["x", "number", "1"]]), b""),
        forge(header_of([["x", "number", 1], ["x", "number", 2]]), b""),
        forge(header_of([["x", "number"]]), b""),
        forge(header_of([], {"op": [1]}), b""),
        forge(header_of([]), wire.pack_tensors({"x": torch.zeros(1)})),
        forge(header_of([["x", "pickle", None]]), wire.pack_tensors({"x": wire._blob(b"c")})),
        forge(header_of([["x", "text", None]]), wire.pack_tensors({"x": wire._blob(b"\xff")})),
        forge(header_of([["x", "text", None]]), wire.pack_tensors({"x": torch.zeros(2)})),
        forge(header_of([["x", "texts", [2**62]]]), wire.pack_tensors({"x": wire._blob(b"ab")})),
        forge(header_of([["x", "texts", [-1, 3]]]), wire.pack_tensors({"x": wire._blob(b"ab")})),
        forge(header_of([["x", "texts", [1]]]), wire.pack_tensors({"x": wire._blob(b"ab")})),
        forge(b"\x80", b""),
        b"",
        b"\x80\x04N.",
    ],
)
def test_lies_with_a_right_checksum_are_refused(frame):
    with pytest.raises(WireError):
        decode(frame)


def test_a_tensor_that_claims_more_than_its_bytes_is_refused():
    text = b'{"x":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8]}}'
    body = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(WireError, match="body"):
        decode(forge(header_of([["x", "tensor", None]]), body))


def test_the_receiver_may_lower_the_cap():
    frame = encode({"x": torch.zeros(1000)})
    assert decode(frame, max_body=1 << 20)["x"].numel() == 1000
    with pytest.raises(WireError, match="caps"):
        decode(frame, max_body=1000)


def test_no_pickle_anywhere_in_the_package():
    import ast
    from pathlib import Path

    import python_api

    banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for file in Path(python_api.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & banned, f"{file}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "eval", "exec"), f"{file}:{node.lineno}"
