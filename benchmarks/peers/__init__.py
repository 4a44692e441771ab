"""What each op is compared with. Every peer is used as its documentation says: none is weakened.

A peer gets the problem of the op it stands against and returns a `Contender`: two callables without
arguments, the forward pass and the forward + backward pass, over tensors that exist already.
"""

from __future__ import annotations

from .contender import Contender, Peer, PeerMissing, package_version, without_recording

__all__ = ["Contender", "Peer", "PeerMissing", "package_version", "without_recording"]
