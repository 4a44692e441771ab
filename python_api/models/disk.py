"""Base models from a local checkpoint folder or the Hub: safetensors only."""

from __future__ import annotations

from pathlib import Path

import torch

from python_api.errors import InputError
from python_api.models.build import DROPOUTS, Base, _is_encoder, quiet

__all__ = ["load_disk", "read_config"]


def read_config(path: str):
    """The transformers config of a checkpoint; one line if there is none.

    Raises:
        InputError: no such folder, no checkpoint, gated or offline.
    """
    from transformers import AutoConfig

    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise InputError(f"model.path: {path} holds no config.json; expected a checkpoint")
    elif Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"model.path: {path} is no folder; expected a checkpoint or a Hub name")
    try:
        with quiet():
            return AutoConfig.from_pretrained(path)
    except Exception as error:
        raise _told(path, error) from error


def look_for_weights(path: str) -> None:
    """Refuse a local checkpoint without safetensors; a Hub name passes.

    Raises:
        InputError: one line that says what to do.
    """
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])), None)
    if pickled is None:
        raise InputError(f"model.path: {path} holds no *.safetensors; expected weights")
    raise InputError(
        f"model.path: {pickled} is pickled; convert it on a machine you trust: "
        "AutoModelForCausalLM.from_pretrained(path).save_pretrained(path)"
    )


def load_disk(path: str, *, device, dtype: torch.dtype, prompt: str = "auto") -> Base:
    """Read a checkpoint, frozen.

    Raises:
        InputError: one line that says what is wrong and what to do.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    config = read_config(path)
    look_for_weights(path)
    encoder = _is_encoder(config)
    for name in DROPOUTS:
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    try:
        kind = AutoModel if encoder else AutoModelForCausalLM
        with quiet():
            model = kind.from_pretrained(path, config=config, use_safetensors=True, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise _told(path, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"model.path: the tokenizer of {path} has no pad and no end token")
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.to(device), tokenizer, encoder=encoder, path=path, prompt=prompt)


def _told(path: str, error: Exception) -> InputError:
    text = str(error)
    lowered = text.lower()
    if "gated" in lowered or "401" in text or "403" in text:
        why = "is gated or private; accept its terms and log in (hf auth login)"
    elif "safetensors" in lowered:
        why = "has no safetensors weights; expected *.safetensors (a pickled .bin is not read)"
    elif isinstance(error, OSError) and (
        "offline" in lowered or "connect" in lowered or "couldn't" in lowered
    ):
        why = "is not in the cache and the Hub was not reached; download it first, or give a folder"
    else:
        first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
        why = f"did not load: {first.strip()[:200]}"
    return InputError(f"model.path: {path} {why}")
