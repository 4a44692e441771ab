"""Proto-EVFL: prototypes and priors for vertical federated learning with few aligned rows."""

from python_api.algorithms.proto_evfl.algorithm import ProtoEvfl

__all__ = ["ProtoEvfl"]
