"""H2Tune: federated fine-tuning of models that differ in width, depth, rank and task.

relation.py   P between a party's layers and the shared ones; download, upload
middle.py     the party's M, S, Omega, T
losses.py     norm, anchor, logit term
optimise.py   the optimiser of what is shared
party.py      the ops and the two phases
server.py     first tensor, aggregation, shuffling;  shared.py  whose tensor is whose
algorithm.py  manifest and rounds
"""

from python_api.algorithms.h2tune.algorithm import H2Tune

__all__ = ["H2Tune"]
