from __future__ import annotations

import itertools

import torch

from python_api.federation.seeds import generator, seed_for


def test_known_values_hold_on_every_machine():
    assert seed_for(0, 1, "shop", "batches") == 1853895421439196989
    assert seed_for(7, 0, "server", "G") == seed_for(7, 0, "server", "G")


def test_every_part_matters_and_parts_do_not_run_together():
    parts = itertools.product((0, 1, 10), (0, 1, 10), ("a", "ab", "1", ""), ("b", "bc", "1a"))
    parts = list(parts)
    assert len({seed_for(*part) for part in parts}) == len(parts)
    assert seed_for(0, 0, "a", "bc") != seed_for(0, 0, "ab", "c")


def test_seeds_have_63_bits_and_fit_a_generator():
    seeds = [seed_for(0, t, "shop", "x") for t in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62
    ones = sum(seed.bit_count() for seed in seeds) / (63 * len(seeds))
    assert 0.49 < ones < 0.51
    a = torch.rand(5, generator=generator(3, 1, "shop", "x"))
    assert torch.equal(a, torch.rand(5, generator=generator(3, 1, "shop", "x")))
    assert not torch.equal(a, torch.rand(5, generator=generator(4, 1, "shop", "x")))
