"""The algorithms by name. Each stands in a module of its own, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.algorithms.base import Algorithm
    from python_api.config import RunConfig

__all__ = ["ALGORITHMS", "ON_TABLES", "make"]

# name -> "module:class"; a string, so that naming the algorithms does not import their models
ALGORITHMS: dict[str, str] = {
    "h2tune": "python_api.algorithms.h2tune:H2Tune",
    "local": "python_api.algorithms.baselines.local:Local",
    "fedit": "python_api.algorithms.baselines.fedit:FedIT",
    "proto_evfl": "python_api.algorithms.proto_evfl:ProtoEvfl",
    "vfl_local": "python_api.algorithms.baselines.vertical.alone:VflLocal",
    "vfl_vanilla": "python_api.algorithms.baselines.vertical.vanilla:VflVanilla",
    "vfl_balanced": "python_api.algorithms.baselines.vertical.balanced:VflBalanced",
    "vfl_masked": "python_api.algorithms.baselines.vertical.masked:VflMasked",
    "fixmatch_lite": "python_api.algorithms.baselines.vertical.fixmatch:FixmatchLite",
    "fedcvt_lite": "python_api.algorithms.baselines.vertical.fedcvt:FedcvtLite",
    "centralised": "python_api.algorithms.baselines.centralised:Centralised",
}
# names that stand for another class where the parties bring tables
ON_TABLES: dict[str, str] = {
    "centralised": "python_api.algorithms.baselines.vertical.centralised:VerticalCentralised",
}


def make(config: RunConfig) -> Algorithm:
    """Build the algorithm that `config.algorithm` names.

    Raises:
        InputError: no algorithm has that name, or it does not run on tables.
    """
    from python_api.config.settings import VERTICAL  # which reads ALGORITHMS

    target = ALGORITHMS.get(config.algorithm)
    if target is None:
        known = ", ".join(ALGORITHMS)
        raise InputError(f"algorithm: {config.algorithm!r} is not known; expected one of {known}")
    if config.setting == "vertical" and config.algorithm not in VERTICAL:
        if config.algorithm not in ON_TABLES:
            known = ", ".join(name for name in ALGORITHMS if name in VERTICAL)
            raise InputError(
                f"algorithm: {config.algorithm} does not run on tables; expected one of {known}"
            )
        target = ON_TABLES[config.algorithm]
    module, _, name = target.partition(":")
    algorithm: type[Algorithm] = getattr(import_module(module), name)
    return algorithm(config)
