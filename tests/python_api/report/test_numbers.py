"""What the page shows, against a plain count of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from python_api.federation.checkpoint import latest_round, load_round, save_round
from python_api.report.numbers import (
    coverage,
    headline,
    relations,
    round_seconds,
    series,
    traffic_per_round,
    traffic_totals,
)
from python_api.report.reading import read_run

PARTIES = ("sentiment", "topic", "intent")


def stored(folder: Path) -> dict[str, object]:
    found = latest_round(folder / "checkpoints")
    assert found is not None
    return load_round(found.path)["server"]


def test_coverage_counts_parties_not_layers(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    state = stored(folder)
    found = coverage(read_run(folder))
    assert [entry.slot for entry in found] == ["q", "k", "v", "o", "gate", "up", "down"]
    for m, entry in enumerate(found):
        assert entry.parties == PARTIES
        for place in range(16 * 16):
            users = sum(
                any(place in layer for layer in state[f"omega/{party}"][:, m].tolist())
                for party in PARTIES
            )
            assert entry.users[place // 16, place % 16] == users
        assert sum(entry.share(n) for n in range(4)) == pytest.approx(1.0)


def test_coverage_with_fewer_slots_in_one_party(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    state = stored(folder)
    state["omega/topic"] = state["omega/topic"][:, 2:4].contiguous()
    state["slots/topic"] = ["v", "o"]
    save_round(folder / "checkpoints", 6, {"server": state})
    found = {entry.slot: entry.parties for entry in coverage(read_run(folder))}
    assert found["q"] == ("sentiment", "intent") and found["v"] == PARTIES


def test_coverage_where_every_party_has_its_own_tensor(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    state = stored(folder)
    shared = state.pop("G")
    state |= {f"G/{party}": shared for party in PARTIES}
    save_round(folder / "checkpoints", 6, {"server": state})
    assert len(coverage(read_run(folder))) == 7


@pytest.mark.parametrize("broken", ["beyond", "flat", "unnamed"])
def test_a_selection_that_does_not_fit_is_left_out(
    make_run: Callable[..., Path], broken: str
) -> None:
    folder = make_run()
    state = stored(folder)
    if broken == "beyond":
        state["omega/topic"][0, 0, 0] = 16 * 16
    elif broken == "flat":
        state["omega/topic"] = state["omega/topic"].flatten()
    else:
        del state["slots/topic"]
    save_round(folder / "checkpoints", 6, {"server": state})
    assert all(entry.parties == ("sentiment", "intent") for entry in coverage(read_run(folder)))


def test_relations_are_those_of_the_checkpoint_in_party_order(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run()
    found = relations(read_run(folder))
    assert tuple(found) == PARTIES
    for party, matrix in found.items():
        np.testing.assert_array_equal(matrix, stored(folder)[f"P/{party}"].double().numpy())


def test_headline_and_series_take_the_last_row_of_a_round(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    row = {"round": 5, "party": "topic", "phase": "local", "split": "test", "metric": "accuracy"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "value": 0.125}) + "\n")
    run = read_run(folder)
    head = headline(run, "topic")
    assert (head.before, head.last, head.last_round, head.phase) == (0.26, 0.125, 5, "local")
    found = series(run, "topic", "accuracy")
    assert found["local"][-1] == (5, 0.125)
    assert [at for at, _ in found["local"]] == [at for at, _ in found["global"]] == [1, 2, 3, 4, 5]
    assert found["before"] == [(0, 0.26)]


def test_a_headline_that_is_no_number_hides_no_earlier_one(make_run: Callable[..., Path]) -> None:
    """The last row counts: an undefined value there must not be replaced by an older value."""
    folder = make_run()
    row = {"round": 5, "party": "topic", "phase": "local", "split": "test", "metric": "accuracy"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "value": None}) + "\n")
    assert headline(read_run(folder), "topic").last is None


def test_seconds_are_those_of_the_rounds_last_row(make_run: Callable[..., Path]) -> None:
    found = round_seconds(read_run(make_run()))
    assert found == {0: 1.5, 1: 7.5, 2: 13.5, 3: 19.5, 4: 25.5, 5: 31.5}


def test_traffic_groups_add_up(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run())
    whole = traffic_totals(run, [])[()]
    for keys in (["op", "direction"], ["party"], ["round", "op", "direction"]):
        groups = traffic_totals(run, keys).values()
        assert sum(group.payload for group in groups) == whole.payload
        assert sum(group.wire for group in groups) == whole.wire
    rounds = traffic_per_round(run)
    assert sum(entry["up"] + entry["down"] for entry in rounds.values()) == whole.payload
    assert whole.messages == len(run.traffic)
