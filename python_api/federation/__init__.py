"""The bus between a server and its parties, and what travels on it."""

from python_api.federation.bus import Federation, Party, Payload, Replies, serve
from python_api.federation.checkpoint import latest_round, load_round, save_round
from python_api.federation.local import LocalFederation
from python_api.federation.manifest import Manifest, ManifestError, OpRule, Rule
from python_api.federation.seeds import generator, seed_for
from python_api.federation.traffic import TrafficLog
from python_api.federation.wire import WireError, decode, encode

__all__ = [
    "Federation",
    "LocalFederation",
    "Manifest",
    "ManifestError",
    "OpRule",
    "Party",
    "Payload",
    "Replies",
    "Rule",
    "TrafficLog",
    "WireError",
    "decode",
    "encode",
    "generator",
    "latest_round",
    "load_round",
    "save_round",
    "seed_for",
    "serve",
]
