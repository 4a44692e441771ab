"""`fedkernels config`: a commented TOML that runs as it is."""

from __future__ import annotations

from python_api.config.explain_tuning import explain_tuning
from python_api.config.explain_vertical import explain_vertical
from python_api.config.settings import setting_of

__all__ = ["explain"]


def explain(algorithm: str = "h2tune", *, full: bool = False) -> str:
    """The default config of `algorithm` as TOML with a comment per key.

    full: the comment stands above the key, with what the key takes and its default, and keys
        without a value are listed too.

    >>> explain("h2tune").splitlines()[3].split(" #")[0].rstrip()
    'algorithm = "h2tune"'
    """
    written = explain_vertical if setting_of(algorithm, {}) == "vertical" else explain_tuning
    return written(algorithm, full)
