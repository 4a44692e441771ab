"""Proto-EVFL: vertical federated learning with prototypes of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from python_api.algorithms.base import Algorithm
from python_api.errors import InputError
from python_api.federation.manifest import Manifest

if TYPE_CHECKING:
    from python_api.federation.bus import Federation, Party

__all__ = ["ProtoEvfl"]


class ProtoEvfl(Algorithm):
    """One party has the labels; representations of rows travel, rows do not."""

    name = "proto_evfl"

    def parties(self, recorder: Any) -> list[Party]:
        raise InputError("proto_evfl: reads its tables and does not train yet")

    def manifest(self) -> Manifest:
        return Manifest({})

    def run(self, federation: Federation, recorder: Any) -> None:
        raise InputError("proto_evfl: reads its tables and does not train yet")
