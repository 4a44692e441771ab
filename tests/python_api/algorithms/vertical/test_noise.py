"""Noise on gradients: the accountant's number, clipping row by row, what is said of it."""

import math

import pytest
import torch

from python_api.algorithms.proto_evfl.noise import GradientNoise, multiplier
from python_api.config import ProtoEvflConfig

pytest.importorskip("dp_accounting")


def test_one_release_is_the_gaussian_mechanism() -> None:
    # the Renyi accountant bounds the analytic Gaussian mechanism from above, not by much
    z = multiplier(1.0, 1e-5, 1)
    assert 3.7 < z < math.sqrt(2 * math.log(1.25e5))


def test_noise_grows_with_the_root_of_the_releases_and_falls_with_epsilon() -> None:
    assert multiplier(8.0, 1e-5, 400) / multiplier(8.0, 1e-5, 100) == pytest.approx(2, rel=0.02)
    assert multiplier(2.0, 1e-5, 10) > multiplier(8.0, 1e-5, 10)


def test_rows_are_clipped_by_themselves_and_the_noise_has_the_size_that_is_told() -> None:
    noise = GradientNoise(ProtoEvflConfig(clip=0.5, epsilon=8.0), releases=3)
    scale = 2 * 0.5 * noise.z
    torch.manual_seed(0)
    rows, width = 4000, 8
    grad = torch.zeros(rows, width)
    grad[:, 0] = 7.0 / rows  # of a mean: the row's own gradient is 7, clipped to 0.5
    sent = noise(grad, rows) * rows
    assert float(sent[:, 1:].std()) == pytest.approx(scale, rel=0.02)
    assert float(sent[:, 0].mean()) == pytest.approx(0.5, abs=4 * scale / math.sqrt(rows))
    told = " ".join(noise.told())
    assert "does not cover" in told and "those who do not know" in told and f"{noise.z:.2f}" in told
