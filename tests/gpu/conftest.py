"""Where a test runs: every backend of a GPU where there is one, else the compiled CPU kernels, so
that the tests themselves are tried on every machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from fedkernels._extension import has_cuda, is_built, why_no_cuda, why_not_built

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Place:
    """A backend and the device that its tensors are on."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


PLACES = (
    Place("cpu", "cpu"),
    Place("cuda", "cuda"),
    Place("triton", "cuda"),
    Place("reference", "cuda"),
)


def why_not(place: Place) -> str | None:
    if place.device == "cuda" and not torch.cuda.is_available():
        return "no GPU here"
    if place.backend == "cuda" and not has_cuda():
        return f"no CUDA kernels: {why_no_cuda()}"
    if place.backend == "triton" and INTERPRETED:
        return "TRITON_INTERPRET=1 is set"
    if place.backend == "cpu" and torch.cuda.is_available():
        return "the GPU is tried instead"
    if place.backend == "cpu" and not is_built():
        return f"not built: {why_not_built()}"
    return None


@pytest.fixture(params=PLACES, ids=str)
def place(request) -> Place:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=PLACES[1:3], ids=str)
def kernel_on_gpu(request) -> Place:
    """For what only a GPU has: streams, graphs, synchronisation."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param
