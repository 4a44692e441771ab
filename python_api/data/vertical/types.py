"""What a vertical run knows of each party's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from python_api.data.vertical.columns import Columns

__all__ = ["PartyData", "Split", "VerticalData"]


@dataclass(frozen=True)
class Split:
    """Some rows of one party, n of F columns each.

    x: float32 (n, F), encoded and standardised; what is missing is imputed.
    y: int64 (n,), places in `VerticalData.labels`, -1 for a row without a label; None where the
        party holds no labels.
    """

    ids: tuple[str, ...]
    x: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class PartyData:
    """One party's rows.

    truth: int64 (n_train,), the true class of each training row as far as the simulation knows it,
        else -1. For the measuring side alone: no party's object is given it.
    """

    name: str
    active: bool
    columns: Columns
    train: Split
    validation: Split
    test: Split
    truth: Tensor


@dataclass(frozen=True)
class VerticalData:
    """All parties, in the order of the config. Test and validation hold the same ids everywhere, in
    the same order.

    unseen: places in `labels` of the classes taken out of the active party's training rows.
    counts: ids that all parties hold ("common"), of which "test" and "validation"; training ids
        that the active and another party hold ("aligned"); training rows per party ("shop"), of
        which not aligned ("shop own").
    notes: one line for each thing found in the tables that a user should know.
    """

    labels: tuple[str, ...]
    unseen: tuple[int, ...]
    parties: dict[str, PartyData]
    counts: dict[str, int]
    notes: tuple[str, ...]
