"""A round without a party that failed, and replies whose values the server cannot work with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from python_api.errors import InputError, RunFailed

from .tiny import Federated, config, party

LLAMA = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2, "pretrain": "none"}


def three(folder: Path, algorithm: str, **h2tune: Any) -> Federated:
    parties = [party(folder, name, rank=2) | {"model": "shared"} for name in "abc"]
    keys = {"algorithm": algorithm, "h2tune": h2tune, "models": {"shared": LLAMA}, "rounds": 3}
    return Federated(config(parties, **keys))


def break_once(run: Federated, name: str, op: str, round: int) -> list[dict]:
    """The party's reply to `op` holds a NaN in that round. Returns what all parties uploaded."""
    sent: list[dict] = []
    for member in run.parties.values():

        def answer(payload: dict, who: str = member.name, original: Any = member.upload) -> dict:
            reply = original(payload)
            sent.append({"party": who, "round": run.federation.round} | reply)
            return reply

        member.upload = answer
    original = getattr(run.parties[name], op)

    def broken(payload: dict) -> dict:
        reply = original(payload)
        if run.federation.round == round:
            for entry, value in reply.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    reply[entry] = torch.full_like(value, float("nan"))
            reply = reply or {"x": 1}  # nothing is declared
        return reply

    setattr(run.parties[name], op, broken)
    return sent


def calls(run: Federated, op: str, direction: str = "down") -> list[tuple[int, str]]:
    rows = run.traffic.rows
    return [(r["round"], r["party"]) for r in rows if (r["op"], r["direction"]) == (op, direction)]


@pytest.mark.parametrize("algorithm", ["h2tune", "fedit"])
def test_a_run_goes_on_without_the_party_whose_upload_holds_a_nan(
    tmp_path: Path, algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = three(tmp_path, algorithm, min_replies=2, aggregate="mean")
    sent = break_once(run, "b", "upload", 2)
    with caplog.at_level(logging.WARNING, "fedkernels.federation"):
        run.run()
    assert sorted(run.recorder.states) == [1, 2, 3]
    state = run.recorder.states[2]
    assert "expected finite values" in state["failed/b"]
    assert [key for t in (1, 3) for key in run.recorder.states[t] if "failed" in key] == []
    assert "round 2, op 'upload', party 'b'" in caplog.text and "NaN" in caplog.text
    assert [who for t, who in calls(run, "upload") if t == 3] == ["a", "b", "c"]
    assert ("P/b" in state, "P/b" in run.recorder.states[3]) == (False, algorithm == "h2tune")
    # the mean of the two that are there, with weights 1/2
    entry, key = ("shared", "G") if algorithm == "h2tune" else ("adapters", "adapters")
    there = [reply[entry] for reply in sent if reply["round"] == 2 and reply["party"] != "b"]
    assert len(there) == 2 and torch.isfinite(state[key]).all()
    torch.testing.assert_close(state[key], sum(there) / 2)


@pytest.mark.parametrize("op", ["download", "evaluate"])
def test_who_fails_an_op_sits_out_the_rest_of_the_round(tmp_path: Path, op: str) -> None:
    run = three(tmp_path, "h2tune", min_replies=2)
    original = getattr(run.parties["b"], op)

    def broken(payload: dict) -> dict:
        if run.federation.round == 1:
            raise OSError("no disk")
        return original(payload)

    setattr(run.parties["b"], op, broken)
    run.run()
    assert run.recorder.states[1]["failed/b"] == "OSError: no disk"
    assert [who for t, who in calls(run, "train_locally") if t == 1] == ["a", "c"]
    assert [who for t, who in calls(run, "upload") if t > 1] == ["a", "b", "c"] * 2
    assert torch.isfinite(run.recorder.states[3]["G"]).all()


@pytest.mark.parametrize("algorithm", ["h2tune", "fedit"])
def test_by_default_one_refused_upload_ends_the_run(tmp_path: Path, algorithm: str) -> None:
    run = three(tmp_path, algorithm)
    break_once(run, "b", "upload", 2)
    with pytest.raises(RunFailed, match="round 2, op 'upload': 2 of 3 parties replied, 3 needed"):
        run.run()


def test_too_few_end_the_run_in_spite_of_it(tmp_path: Path) -> None:
    run = three(tmp_path, "h2tune", min_replies=2)
    for name in "ab":
        break_once(run, name, "upload", 2)
    with pytest.raises(RunFailed, match=r"1 of 3 parties replied, 2 needed \(a: .*; b: "):
        run.run()


@pytest.mark.parametrize("algorithm", ["h2tune", "fedit"])
def test_more_than_there_are_is_refused(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(InputError, match=r"h2tune\.min_replies: 4 is above the number of parties"):
        three(tmp_path, algorithm, min_replies=4)


@pytest.mark.parametrize("rows", [0, -5, 2.5, True])
@pytest.mark.parametrize(("algorithm", "op"), [("h2tune", "describe"), ("fedit", "upload")])
def test_a_number_of_rows_that_is_none_fails_that_party(
    tmp_path: Path, algorithm: str, op: str, rows: float
) -> None:
    run = three(tmp_path, algorithm, weight="samples")
    original = getattr(run.parties["b"], op)
    setattr(run.parties["b"], op, lambda payload: original(payload) | {"samples": rows})
    with pytest.raises(RunFailed, match=r"b: .*entry 'samples': expected a whole number of rows"):
        run.run()


@pytest.mark.parametrize("slots", [["q"] * 7, list("qkvoabc"), ["q"], "q k v o gate up down", []])
def test_slots_that_the_server_cannot_place_fail_that_party(tmp_path: Path, slots: Any) -> None:
    run = three(tmp_path, "h2tune")
    run.parties["b"].describe = lambda payload: {"slots": slots}
    with pytest.raises(RunFailed, match=r"\(b: .*entry 'slots': expected 7 names of q k v o"):
        run.run()


def test_a_base_that_is_no_hash_fails_that_party(tmp_path: Path) -> None:
    run = three(tmp_path, "h2tune", basis="svd", middle_rank=2)
    original = run.parties["b"].describe
    run.parties["b"].describe = lambda payload: original(payload) | {"base": "mine"}
    with pytest.raises(RunFailed, match=r"\(b: .*entry 'base': expected a sha256"):
        run.run()


@pytest.mark.parametrize("names", [["test/loss"], ["loss", "test/f1"], ["test/f1"] * 2, "test/f1"])
def test_metrics_without_their_names_fail_that_party(tmp_path: Path, names: Any) -> None:
    run = three(tmp_path, "local")
    values = torch.zeros(2, dtype=torch.float64)
    run.parties["b"].evaluate = lambda payload: {"names": names, "values": values}
    with pytest.raises(RunFailed, match=r"\(b: .*entry 'names': expected one split/metric"):
        run.run()
