"""The bootstrap interval, against the plain statement of what it is."""

from __future__ import annotations

import random

import pytest

from python_api.sweep import interval


def plain(differences, draws, seed):
    draw = random.Random(seed)
    count = len(differences)
    means = sorted(sum(draw.choices(differences, k=count)) / count for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


@pytest.mark.parametrize("count", [2, 7, 30])
def test_it_is_the_percentile_bootstrap(count):
    draw = random.Random(count)
    values = [draw.gauss(0.3, 1) for _ in range(count)]
    found, expected = interval(values), plain(values, 10_000, 1)
    # two streams of 10,000 draws: their quantiles differ by a few hundredths of a deviation
    assert found == pytest.approx(expected, abs=0.08)
    assert found[0] < sum(values) / count < found[1]


def test_it_is_the_same_again_and_moves_with_its_seed():
    values = [random.Random(i).random() for i in range(30)]
    assert interval(values) == interval(tuple(values))
    assert interval(values, seed=1) != interval(values, seed=2)


def test_many_pairs_are_drawn_in_blocks(monkeypatch):
    values = [random.Random(i).random() for i in range(50)]
    whole = interval(values, draws=200)
    monkeypatch.setattr("python_api.sweep.bootstrap.BLOCK", 500)
    low, high = interval(values, draws=200)
    assert low < high
    assert (low, high) == pytest.approx(whole, abs=0.1)


def test_no_spread_gives_no_width():
    assert interval([0.5]) == (0.5, 0.5)
    assert interval([0.25] * 9, draws=1) == (0.25, 0.25)


@pytest.mark.parametrize(("values", "draws"), [([], 10), ([[1.0]], 10), ([1.0], 0)])
def test_what_it_refuses(values, draws):
    with pytest.raises(ValueError, match=r"expected one or more numbers|at least 1"):
        interval(values, draws=draws)
