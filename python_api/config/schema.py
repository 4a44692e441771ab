"""The resolved configuration: frozen models, one per table.

What a user writes is merged first (`load.py`); these classes hold the outcome, checked, with every
path absolute and every party complete. A field's description is what `fedkernels config` prints.
"""

from __future__ import annotations

from pydantic import Field

from python_api.config.schema_train import EvalConfig, TrainConfig
from python_api.config.schema_tuning import (
    SLOTS,
    H2TuneConfig,
    ModelConfig,
    PartyConfig,
    PretrainConfig,
    TaskConfig,
)
from python_api.config.schema_vertical import (
    DataConfig,
    EncoderConfig,
    ProtoEvflConfig,
    VerticalPartyConfig,
)
from python_api.config.settings import Setting
from python_api.config.table import Positive, Table

__all__ = [
    "SLOTS",
    "DataConfig",
    "EncoderConfig",
    "EvalConfig",
    "H2TuneConfig",
    "ModelConfig",
    "PartyConfig",
    "PretrainConfig",
    "ProtoEvflConfig",
    "RunConfig",
    "Table",
    "TaskConfig",
    "TrainConfig",
    "VerticalPartyConfig",
]


class RunConfig(Table):
    """A run, resolved."""

    algorithm: str = Field(description="what runs")
    seed: int = Field(0, description="every random number comes from it")
    rounds: Positive = Field(5, description="download, local training, upload: once per round")
    device: str = Field("auto", description='"auto", "cpu" or "cuda"')
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    h2tune: H2TuneConfig = H2TuneConfig()
    data: DataConfig | None = None
    proto_evfl: ProtoEvflConfig = ProtoEvflConfig()
    parties: tuple[PartyConfig, ...] | tuple[VerticalPartyConfig, ...] = ()

    @property
    def setting(self) -> Setting:
        """Whether parties bring a model and a task ("tuning") or a table ("vertical")."""
        tables = any(isinstance(party, VerticalPartyConfig) for party in self.parties)
        return "vertical" if tables else "tuning"

    @property
    def tuning_parties(self) -> tuple[PartyConfig, ...]:
        """The parties of a fine-tuning run; none in a vertical one."""
        return tuple(party for party in self.parties if isinstance(party, PartyConfig))

    @property
    def vertical_parties(self) -> tuple[VerticalPartyConfig, ...]:
        """The parties of a vertical run; none in a fine-tuning one."""
        return tuple(party for party in self.parties if isinstance(party, VerticalPartyConfig))
