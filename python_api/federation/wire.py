"""The frame in which every payload travels.

    magic "FEDK" (4) | format (1) | header length u32 (4) | body length u64 (8) | sha256 (32)
    header: msgpack {"meta": {...}, "entries": [[name, kind, value or text lengths], ...]}
    body:   safetensors; one tensor an entry, texts and blobs as uint8

All integers are little-endian. The sum covers header and body. A payload has one spelling only:
value is nil but for numbers and texts, meta holds the keys of `META`, and both headers (msgpack and
safetensors) are as `encode` writes them, so nothing travels beside the entries. A decoder believes
no length before it has compared it with what it holds; it copies a tensor twice, and what a header
unfolds to is bounded by the cap on headers. What does not fit raises `WireError`. Nothing that was
received is executed: no pickle, no `torch.load`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import TypeAlias

import msgpack
import safetensors.torch
import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "MAX_BODY",
    "MAX_HEADER",
    "META",
    "Payload",
    "Value",
    "WireError",
    "decode",
    "decode_message",
    "encode",
    "pack_tensors",
    "payload_bytes",
    "unpack_tensors",
]

Value: TypeAlias = Tensor | list[str] | str | int | float | bytes
Payload: TypeAlias = dict[str, Value]

MAGIC = b"FEDK"
FORMAT = 1
PREFIX = struct.Struct("<4sBIQ32s")
MAX_HEADER = 1 << 20  # of either header
MAX_BODY = 64 << 30
MAX_NAME = 256
# What a header may say about its frame. `failed`: a refusal; `bad_input`: of a party's own input.
META = {"op": str, "round": int, "failed": int, "bad_input": int}
DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class WireError(ValueError):
    """A payload that cannot be sent, or a frame that is not what its sender wrote."""


def encode(payload: Mapping[str, Value], meta: Mapping[str, str | int] | None = None) -> bytes:
    """One frame of a payload. Equal payloads give equal bytes.

    Tensors may lie on any device, be strided, expanded, of no dimension or empty; gradients do not
    travel. Errors: `WireError` names the entry and what was expected.

    >>> frame = encode({"G": torch.ones(2, 3), "note": ["a", "bc"], "loss": 0.5})
    >>> decode(frame)["note"], decode(frame)["loss"], decode(frame)["G"].shape
    (['a', 'bc'], 0.5, torch.Size([2, 3]))
    """
    entries: list[list[object]] = []
    tensors: dict[str, Tensor] = {}
    for name, value in payload.items():
        _check_name(name)
        if isinstance(value, Tensor):
            entries.append([name, "tensor", None])
            tensors[name] = value
        elif isinstance(value, str):
            entries.append([name, "text", None])
            tensors[name] = _blob(_utf8(name, value))
        elif isinstance(value, bytes):
            entries.append([name, "bytes", None])
            tensors[name] = _blob(value)
        elif isinstance(value, list):
            parts = [_utf8(name, text) for text in value]
            entries.append([name, "texts", [len(part) for part in parts]])
            tensors[name] = _blob(b"".join(parts))
        elif isinstance(value, int) and not _fits(value):
            raise WireError(f"entry {name!r}: an integer must fit 64 bits, got {value}")
        elif isinstance(value, int | float):
            entries.append([name, "number", value])
        else:
            raise WireError(
                f"entry {name!r}: expected a tensor, text, list of texts, number or bytes, "
                f"got {type(value).__name__}"
            )
    _check_meta(meta or {})
    header = msgpack.packb({"meta": dict(meta or {}), "entries": entries})
    body = pack_tensors(tensors)
    if len(header) > MAX_HEADER or len(body) > MAX_BODY:
        raise WireError(
            f"a payload of header {len(header)} and body {len(body)} bytes is above the caps "
            f"{MAX_HEADER} and {MAX_BODY}"
        )
    digest = hashlib.sha256(header)
    digest.update(body)
    return b"".join(
        (
            PREFIX.pack(MAGIC, FORMAT, len(header), len(body), digest.digest()),
            header,
            body,
        )
    )


def decode(frame: bytes, *, max_body: int = MAX_BODY) -> Payload:
    """The payload of a frame; tensors are fresh CPU tensors that share no memory with the sender's.

    Errors: `WireError` for a frame that is cut, flipped, too large or not ours.
    """
    return decode_message(frame, max_body=max_body)[0]


def decode_message(
    frame: bytes, *, max_body: int = MAX_BODY
) -> tuple[Payload, dict[str, str | int]]:
    """As `decode`, with the frame's `meta` (see `META`) beside it."""
    if len(frame) < PREFIX.size:
        raise WireError(f"a frame holds at least {PREFIX.size} bytes, got {len(frame)}")
    magic, form, header_size, body_size, digest = PREFIX.unpack_from(frame)
    if magic != MAGIC or form != FORMAT:
        raise WireError(
            f"expected a frame of {MAGIC!r} format {FORMAT}, got {magic!r} format {form}"
        )
    if header_size > MAX_HEADER or body_size > max_body:
        raise WireError(
            f"header {header_size} and body {body_size} bytes are above the caps "
            f"{MAX_HEADER} and {max_body}"
        )
    if len(frame) != PREFIX.size + header_size + body_size:
        raise WireError(
            f"the frame names {PREFIX.size + header_size + body_size} bytes and holds {len(frame)}"
        )
    content = memoryview(frame)[PREFIX.size :]
    if hashlib.sha256(content).digest() != digest:
        raise WireError("checksum: the frame is not what its sender wrote")
    header = _unpack_header(bytes(content[:header_size]))
    body = bytes(content[header_size:])
    if int.from_bytes(body[:8], "little") > MAX_HEADER:
        raise WireError(f"body: its header is above the cap {MAX_HEADER}")
    tensors = unpack_tensors(body)
    _check_body_header(body)
    payload: Payload = {}
    for name, kind, info in header["entries"]:
        _check_name(name)
        if name in payload:
            raise WireError(f"entry {name!r} stands twice in the header")
        if kind == "number":
            if not isinstance(info, int | float) or not _fits(info):
                raise WireError(f"entry {name!r}: expected a number, got {type(info).__name__}")
            payload[name] = info
            continue
        if kind != "texts" and info is not None:
            raise WireError(f"entry {name!r}: a {kind!r} has no value in the header")
        if name not in tensors:
            raise WireError(f"entry {name!r} stands in the header and not in the body")
        tensor = tensors.pop(name)
        payload[name] = tensor if kind == "tensor" else _from_blob(name, kind, info, tensor)
    if tensors:
        raise WireError(f"entry {next(iter(tensors))!r} stands in the body and not in the header")
    return payload, header["meta"]


def payload_bytes(payload: Mapping[str, Value]) -> int:
    """What `traffic.jsonl` calls `bytes`: tensors, texts in UTF-8 and blobs; numbers count 0.

    >>> payload_bytes({"G": torch.zeros(4, dtype=torch.float16), "note": "né", "loss": 0.5})
    11
    """
    total = 0
    for value in payload.values():
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, str):
            total += len(value.encode())
        elif isinstance(value, list):
            total += sum(len(text.encode()) for text in value)
        elif isinstance(value, bytes):
            total += len(value)
    return total


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes. `WireError` for a layout or dtype that the format has not."""
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WireError(f"entry {name!r}: expected a dense tensor with data")
        if tensor.dtype not in DTYPES:
            raise WireError(f"entry {name!r}: dtype {tensor.dtype} has no place on the wire")
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = dense.untyped_storage()
        # safetensors refuses tensors that share a storage, even where they do not overlap.
        if storage.nbytes() != dense.nbytes or storage.data_ptr() in storages:
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        ready[name] = dense
    return safetensors.torch.save(ready) if ready else b""


def unpack_tensors(data: bytes) -> dict[str, Tensor]:
    """The inverse of `pack_tensors`; `WireError` for anything that it did not write."""
    if not data:
        return {}
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # the parser's own errors, and KeyError for a dtype torch lacks
        raise WireError(f"body: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WireError(f"entry {name!r}: dtype {tensor.dtype} has no place on the wire")
    return tensors


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise WireError(f"an entry's name must be a text of 1 to {MAX_NAME} characters")
    _utf8("name", name)


def _utf8(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise WireError(f"entry {name!r}: expected a list of texts, got {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WireError(f"entry {name!r}: a text is not valid Unicode") from None


def _blob(data: bytes) -> Tensor:
    if not data:  # frombuffer refuses an empty buffer
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _from_blob(name: str, kind: object, info: object, tensor: Tensor) -> Value:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise WireError(f"entry {name!r}: a {kind} must lie as uint8 of one dimension")
    data = tensor.numpy().tobytes()
    try:
        if kind == "bytes":
            return data
        if kind == "text":
            return data.decode()
        if kind == "texts" and isinstance(info, list):
            return _split(name, data, info)
    except UnicodeDecodeError:
        raise WireError(f"entry {name!r}: a text is not valid UTF-8") from None
    raise WireError(f"entry {name!r}: unknown kind {kind!r}")


def _split(name: str, data: bytes, lengths: list[object]) -> list[str]:
    texts, at = [], 0
    for length in lengths:
        if type(length) is not int or not 0 <= length <= len(data) - at:
            raise WireError(f"entry {name!r}: text lengths do not fit {len(data)} bytes")
        texts.append(data[at : at + length].decode())
        at += length
    if at != len(data):
        raise WireError(f"entry {name!r}: text lengths do not fit {len(data)} bytes")
    return texts


def _unpack_header(data: bytes) -> dict:
    try:
        header = msgpack.unpackb(data, strict_map_key=True)
    except Exception as error:  # msgpack raises half a dozen unrelated classes
        raise WireError(f"header: {type(error).__name__}: {error}") from None
    if not isinstance(header, dict) or set(header) != {"meta", "entries"}:
        raise WireError("header: expected a map of meta and entries")
    meta, entries = header["meta"], header["entries"]
    _check_meta(meta)
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 3 for entry in entries
    ):
        raise WireError("header: entries must be triples of name, kind and value")
    if msgpack.packb(header) != data:
        raise WireError("header: not in the form in which it is written")
    return header


def _check_meta(meta: object) -> None:
    if not isinstance(meta, Mapping):
        raise WireError("header: meta must map names to texts or integers")
    for key, value in meta.items():
        kind = META.get(key) if isinstance(key, str) else None
        if kind is None:
            raise WireError(f"header: meta may hold {', '.join(META)} and nothing else")
        if type(value) is not kind:
            word = "an integer" if kind is int else "a text"
            raise WireError(
                f"header: meta {key!r}: expected {word}, got {type(value).__name__} "
                f"{str(value)[:20]!r}"
            )
    if len(meta.get("op", "")) > MAX_NAME or not _fits(meta.get("round", 0)):
        raise WireError("header: meta 'op' or 'round' is too long")
    if meta.get("failed", 1) != 1 or meta.get("bad_input", 1) != 1:
        raise WireError("header: meta 'failed' and 'bad_input' are 1 where they stand")
    if "bad_input" in meta and "failed" not in meta:
        raise WireError("header: meta 'bad_input' stands beside 'failed' only")


def _check_body_header(body: bytes) -> None:
    """Refuses what the safetensors parser reads over: metadata, spaces, repeated names."""
    if not body:
        return
    size = int.from_bytes(body[:8], "little")
    text = body[8 : 8 + size]
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("body: its header is no JSON") from None
    plain = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if "__metadata__" in header or text != plain + b" " * (-len(plain) % 8):
        raise WireError("body: its header is not in the form in which it is written")


def _fits(value: float) -> bool:
    return isinstance(value, float) or -(2**63) <= value < 2**63
