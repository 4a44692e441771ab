"""The one thing that an algorithm knows about the outside: `Federation.call`.

A party is an object whose methods take a payload and return one. `call` sends an op to parties and
collects what comes back; the manifest is checked where a payload leaves and where it arrives. An
engine (`local`, and others) only moves frames: `serve` and `Federation.call` hold all the rules.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from python_api.errors import InputError, RunFailed
from python_api.federation.manifest import Manifest, ManifestError, OpRule, Rule
from python_api.federation.seeds import seed_for
from python_api.federation.traffic import TrafficLog
from python_api.federation.wire import (
    Payload,
    Value,
    WireError,
    decode_message,
    encode,
    payload_bytes,
)

__all__ = ["Federation", "Party", "Payload", "Replies", "serve"]

logger = logging.getLogger("fedkernels.federation")

REASON_CAP = 500  # bytes
# What may travel in place of a reply.
REFUSAL = Manifest({"refusal": OpRule(up={"reason": Rule(kind="text", max_bytes=REASON_CAP)})})


class Party:
    """One participant. Every op of the manifest is a public method `op(payload) -> payload`.

    name: unique, `[A-Za-z0-9_-]+`.
    sizes: what the shapes of the manifest may name, for example `{"layers": 3, "rank": 8}`; read
        once, when the federation is built.
    """

    name: str
    sizes: Mapping[str, int] = {}

    def state(self) -> dict[str, object]:
        """All that must survive a restart: nested dicts and lists of tensors, texts and numbers."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""

    def save(self, folder: Path) -> None:
        """Writes the party's model into `folder`, which exists.

        `base/` may lie there already, unchanged since the party's last save (hard links to it):
        leave it, or replace its files by rename, never write into them.
        """


@dataclass(frozen=True)
class Replies:
    """What a call brought back: `ok` and `failed` in party order, bytes of both directions."""

    ok: dict[str, Payload]
    failed: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0

    def sum(
        self,
        entry: str,
        *,
        weights: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """`sum_k weights[k] * reply_k[entry]`, added in party order, so the bits never depend on
        who answered first. Weights are 1 unless they are given.

        >>> replies = Replies({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}})
        >>> replies.sum("x", weights={"a": 0.25, "b": 0.5})
        tensor([0.7500, 0.7500])
        """
        total: Tensor | None = None
        for name, payload in self.ok.items():
            value = payload[entry]
            if not isinstance(value, Tensor):
                raise TypeError(f"entry {entry!r} of party {name!r} is no tensor")
            term = value.to(dtype)
            if weights is not None:
                term = term * weights[name]
            total = term if total is None else total + term
        if total is None:
            raise ValueError(f"entry {entry!r}: no reply to sum")
        return total


class Federation(ABC):
    """Parties that live for the whole run, and the rules of every exchange with them.

    round: the round that traffic rows and the parties' random streams belong to. Algorithms set it
        at the start of every round (`federation.round = t`; 0 before training).
    """

    def __init__(
        self,
        parties: Sequence[str],
        manifest: Manifest,
        sizes: Mapping[str, Mapping[str, int]],
        *,
        traffic: TrafficLog | None = None,
    ) -> None:
        repeated = [name for name, count in Counter(parties).items() if count > 1]
        if repeated:
            raise ValueError(f"two parties are named {repeated[0]!r}")
        self.parties = tuple(parties)
        self.manifest = manifest
        self.sizes = {name: dict(sizes.get(name, {})) for name in parties}
        self.traffic = TrafficLog() if traffic is None else traffic
        self._round = 0
        self._calls: Counter[tuple[str, str]] = Counter()

    @property
    def round(self) -> int:
        return self._round

    @round.setter
    def round(self, value: int) -> None:
        self._round = value
        self._calls.clear()

    @abstractmethod
    def _exchange(self, party: str, op: str, frame: bytes, call: int) -> bytes:
        """Carries a frame to one party and returns its answer. Raises what carrying can raise."""

    def call(
        self,
        op: str,
        payloads: Payload | Mapping[str, Payload] | None = None,
        *,
        to: Sequence[str] | None = None,
        deadline: float | None = None,
        min_replies: int | None = None,
    ) -> Replies:
        """Runs `op` at the parties, in party order.

        payloads: one payload for all (a broadcast), or one per party name.
        to: which parties; by default those named in `payloads`, else all.
        deadline: seconds a party has; a later reply is refused.
        min_replies: how many must answer well; by default all that were asked.

        Errors: `ManifestError` if what would be sent is not declared (nothing is sent then);
        `RunFailed` that names every failed party if too few answer, `InputError` instead if a party
        says that its own config or data is at fault: its words name the key or the file. A reply
        with a NaN, another shape or dtype, or an entry that is not declared counts as that
        party's failure.
        """
        plan = self._plan(op, payloads, to)
        needed = len(plan) if min_replies is None else min_replies
        if not 0 <= needed <= len(plan):
            raise ValueError(f"min_replies must be 0 to {len(plan)}, got {min_replies}")
        start = time.perf_counter()
        ok: dict[str, Payload] = {}
        failed: dict[str, str] = {}
        bad_input: list[str] = []
        moved = 0
        frames: dict[int, bytes] = {}  # a broadcast is encoded once
        for name, payload in plan.items():
            if id(payload) not in frames:
                frames[id(payload)] = encode(payload, {"op": op, "round": self.round})
            frame = frames[id(payload)]
            moved += self._record(name, op, "down", payload, frame)
            self._calls[name, op] += 1
            sent = time.perf_counter()
            try:
                answer = self._exchange(name, op, frame, self._calls[name, op])
            except (OSError, TimeoutError, WireError) as error:
                failed[name] = _reason(error)
                continue
            late = time.perf_counter() - sent
            reason, reply, size, own_input = self._accept(name, op, answer)
            moved += size
            if reason is not None and own_input:
                bad_input.append(reason)
            if reason is None and deadline is not None and late > deadline:
                reason = f"expected a reply within {deadline:g} s, got it after {late:.1f} s"
            if reason is None:
                ok[name] = reply
            else:
                failed[name] = reason
                logger.warning("round %d, op %r, party %r: %s", self.round, op, name, reason)
        if len(ok) < needed:
            if bad_input:
                raise InputError(bad_input[0])
            listed = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise RunFailed(
                f"round {self.round}, op {op!r}: {len(ok)} of {len(plan)} parties replied, "
                f"{needed} needed ({listed})"
            )
        return Replies(ok, failed, moved, time.perf_counter() - start)

    def _plan(
        self,
        op: str,
        payloads: Payload | Mapping[str, Payload] | None,
        to: Sequence[str] | None,
    ) -> dict[str, Payload]:
        """Who gets which payload, in party order, all of it checked before anything is sent."""
        self.manifest.rule(op)
        payloads = {} if payloads is None else payloads
        per_party = bool(payloads) and all(isinstance(v, Mapping) for v in payloads.values())
        asked = list(to if to is not None else payloads if per_party else self.parties)
        unknown = [name for name in asked if name not in self.parties]
        if unknown or len(set(asked)) != len(asked):
            raise ValueError(f"to must name parties once each, got {', '.join(map(repr, asked))}")
        plan: dict[str, Payload] = {}
        for name in self.parties:
            if name not in asked:
                continue
            if per_party and name not in payloads:
                raise ValueError(f"op {op!r}: no payload for party {name!r}")
            plan[name] = payloads[name] if per_party else payloads  # type: ignore[assignment]
        for name, payload in plan.items():
            self.manifest.check(op, "down", payload, party=name, sizes=self.sizes[name])
        return plan

    def _accept(self, party: str, op: str, frame: bytes) -> tuple[str | None, Payload, int, bool]:
        """A reply as it arrived: why it is refused (or None), the payload, its bytes, and whether
        the party says that its own input is at fault."""
        try:
            reply, meta = decode_message(frame)
        except WireError as error:
            self.traffic.add(
                round=self.round,
                party=party,
                op=op,
                direction="up",
                bytes=0,
                wire_bytes=len(frame),
            )
            return _reason(error), {}, 0, False
        size = self._record(party, op, "up", reply, frame)
        refused = "failed" in meta
        # who could not read the frame cannot name its round
        if meta.get("op") != op or (meta.get("round") != self.round and not refused):
            got = _cut(f"{meta.get('op')!r} of round {meta.get('round')}", 80)
            return f"expected a reply to {op!r} of round {self.round}, got {got}", {}, size, False
        try:
            if refused:
                REFUSAL.check("refusal", "up", reply, party=party, sizes={})
                return _cut(str(reply["reason"])), {}, size, "bad_input" in meta
            self.manifest.check(op, "up", reply, party=party, sizes=self.sizes[party])
        except ManifestError as error:
            return _cut(str(error)), {}, size, False
        return None, reply, size, False

    def _record(
        self,
        party: str,
        op: str,
        direction: str,
        payload: Mapping[str, Value],
        frame: bytes,
    ) -> int:
        size = payload_bytes(payload)
        self.traffic.add(
            round=self.round,
            party=party,
            op=op,
            direction=direction,
            bytes=size,
            wire_bytes=len(frame),
        )
        return size


def serve(
    party: Party,
    manifest: Manifest,
    op: str,
    frame: bytes,
    *,
    sizes: Mapping[str, int],
    run_seed: int,
    call: int = 1,
) -> bytes:
    """A party's end of an exchange: checks, runs the op, checks again, answers with a frame.

    What the manifest does not declare never leaves: the answer then is a refusal that says why.
    torch's global random stream is set from (run, round, party, op, call) and put back afterwards,
    so a party draws the same numbers in every engine, whatever the others do.
    An exception inside the op is answered as the party's failure; KeyboardInterrupt passes.
    """
    meta: dict[str, str | int] = {"op": op}
    try:
        payload, meta = decode_message(frame)
        if "round" not in meta:
            raise WireError("header: meta must name the round")
        manifest.check(op, "down", payload, party=party.name, sizes=sizes)
        method = getattr(party, op, None)
        if not callable(method):
            raise ManifestError(f"op {op!r}: party {party.name!r} has no such method")
        seed = seed_for(run_seed, int(meta["round"]), party.name, f"op:{op}:{call}")
        with _random_stream(seed):
            reply = method(payload)
        manifest.check(op, "up", reply, party=party.name, sizes=sizes)
        return encode(reply, {"op": op, "round": meta["round"]})
    except Exception as error:
        if not isinstance(error, ManifestError | InputError):
            logger.exception("op %r of party %r failed", op, party.name)
        refusal = {"op": op, "round": meta.get("round", 0), "failed": 1}
        if isinstance(error, InputError):
            refusal["bad_input"] = 1
        return encode({"reason": _reason(error)}, refusal)


@contextmanager
def _random_stream(seed: int) -> Iterator[None]:
    """torch's global streams start from `seed`; the CPU's is put back afterwards."""
    before = torch.get_rng_state()
    # Not `torch.manual_seed`: without CUDA it queues a stack trace at every call.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _reason(error: Exception) -> str:
    """One line, capped: a reason may travel, and a message may be as long as what it quotes."""
    text = str(error)
    if not isinstance(error, InputError | RunFailed | WireError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _cut(text)


def _cut(text: str, most: int = REASON_CAP) -> str:
    """One line of at most `most` bytes, no control characters."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    data = line.encode("utf-8", "replace")
    if len(data) > most:
        data = data[: most - 3].decode("utf-8", "ignore").encode() + b"..."
    return data.decode()
