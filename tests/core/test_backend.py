"""The one rule that picks a backend."""

from __future__ import annotations

import logging

import pytest
import torch

from fedkernels import _backend
from fedkernels._backend import BackendUnavailable, Candidate, refusals, resolve


def on_the_cpu(x):
    return None if x.device.type == "cpu" else f"x is on {x.device}"


CANDIDATES = (
    Candidate("triton", lambda x: "triton is not installed"),
    Candidate("cpu", on_the_cpu),
    Candidate("reference", lambda x: None),
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.setattr(_backend, "_AUTO", "auto")
    monkeypatch.setattr(_backend, "_LOG", False)
    monkeypatch.setattr(_backend, "_logged", set())


def test_auto_takes_the_first_that_can():
    assert resolve("op", "auto", CANDIDATES, torch.ones(1)) == "cpu"
    assert resolve("op", "auto", CANDIDATES, torch.ones(1, device="meta")) == "reference"


def test_explicit_is_never_substituted():
    assert resolve("op", "reference", CANDIDATES, torch.ones(1)) == "reference"
    with pytest.raises(BackendUnavailable) as error:
        resolve("op", "cpu", CANDIDATES, torch.ones(1, device="meta"))
    message = str(error.value)
    assert message == (
        "op: backend 'cpu' cannot run this call (triton: triton is not installed; "
        "cpu: x is on meta; reference: can run)"
    )


def test_a_backend_that_the_op_does_not_have_is_unavailable():
    with pytest.raises(BackendUnavailable, match=r"backend 'cuda' cannot run.*reference: can run"):
        resolve("op", "cuda", CANDIDATES, torch.ones(1))


def test_nothing_can_run():
    with pytest.raises(BackendUnavailable, match="no backend can run this call"):
        resolve("op", "auto", CANDIDATES[:1], torch.ones(1))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="must be one of auto, cuda, triton, cpu, reference"):
        resolve("op", "gpu", CANDIDATES, torch.ones(1))


def test_the_environment_overrides_auto_only(monkeypatch):
    monkeypatch.setattr(_backend, "_AUTO", "reference")
    assert resolve("op", "auto", CANDIDATES, torch.ones(1)) == "reference"
    assert resolve("op", "cpu", CANDIDATES, torch.ones(1)) == "cpu"


def test_the_environment_is_named_where_it_is_wrong(monkeypatch):
    monkeypatch.setattr(_backend, "_AUTO", "fast")
    with pytest.raises(ValueError, match=r"FEDKERNELS_BACKEND must be one of .* got 'fast'"):
        resolve("op", "auto", CANDIDATES, torch.ones(1))
    monkeypatch.setattr(_backend, "_AUTO", "triton")
    with pytest.raises(BackendUnavailable, match="FEDKERNELS_BACKEND 'triton' cannot run"):
        resolve("op", "auto", CANDIDATES, torch.ones(1))


def test_an_error_in_a_candidate_is_not_a_refusal():
    def broken(x):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        resolve("op", "auto", (Candidate("cpu", broken), *CANDIDATES), torch.ones(1))


def test_refusals_lists_every_candidate():
    assert refusals(CANDIDATES, torch.ones(1)) == {
        "triton": "triton is not installed",
        "cpu": None,
        "reference": None,
    }


def test_each_first_choice_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(_backend, "_LOG", True)
    with caplog.at_level(logging.INFO, logger="fedkernels"):
        for _ in range(3):
            resolve("op", "auto", CANDIDATES, torch.ones(1))
    assert [record.message for record in caplog.records] == [
        "op runs on cpu (triton: triton is not installed)"
    ]


def test_it_compiles_without_a_graph_break_and_without_a_log(monkeypatch, caplog):
    monkeypatch.setattr(_backend, "_LOG", True)

    def scale(x):
        return x * 2 if resolve("op", "auto", CANDIDATES, x) == "cpu" else x

    with caplog.at_level(logging.INFO, logger="fedkernels"):
        compiled = torch.compile(scale, fullgraph=True, backend="eager")
        assert compiled(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert not caplog.records
