"""One run = one TOML file = one frozen `RunConfig`.

`load_config` resolves an algorithm's name, a file or a dict; `dump_config` writes it out in full.
"""

from __future__ import annotations

from python_api.config.defaults import default_source, known_algorithms
from python_api.config.dump import dump_config
from python_api.config.explain import explain
from python_api.config.ignored import ignored
from python_api.config.load import load_config
from python_api.config.overrides import parse_set
from python_api.config.schema import (
    DataConfig,
    EncoderConfig,
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PartyConfig,
    PretrainConfig,
    ProtoEvflConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
    VerticalPartyConfig,
)

__all__ = [
    "DataConfig",
    "EncoderConfig",
    "EvalConfig",
    "H2TuneConfig",
    "ModelConfig",
    "PartyConfig",
    "PretrainConfig",
    "ProtoEvflConfig",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
    "VerticalPartyConfig",
    "default_source",
    "dump_config",
    "explain",
    "ignored",
    "known_algorithms",
    "load_config",
    "parse_set",
]
