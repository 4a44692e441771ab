"""Base models: built on the spot from a family name and sizes, or read from disk or the Hub."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from python_api.errors import InputError
from python_api.models.tokenizer import byte_tokenizer

if TYPE_CHECKING:
    from python_api.config import ModelConfig

__all__ = ["Base", "Progress", "build_config", "load_base", "model_config", "quiet"]

Progress = Callable[[int, int, float], None]  # step, steps, loss
DROPOUTS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
PRETRAIN_LIMIT = 50_000_000  # parameters above which pre-training is off by default


class Base:
    """A frozen model and its tokenizer, shared by all parties that name it.

    Args:
        model: a decoder with its language-model head, or a bare encoder; no parameter trains.
        tokenizer: has a pad token.
        encoder: hidden states see both sides.
        path: the checkpoint folder or Hub name, or None for a model built on the spot.
        prompt: how a question becomes a prompt (``batching.Batcher``).
    """

    def __init__(
        self, model, tokenizer, *, encoder: bool, path: str | None = None, prompt: str = "auto"
    ) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.path = path
        self.prompt = prompt

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the frozen tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the model and its tokenizer as a transformers checkpoint (safetensors)."""
        with quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, and no word on every request of the Hub's client, while
    reading or writing a checkpoint: what goes wrong is told in one line of ours."""
    import logging as standard

    from transformers.utils import logging

    client = standard.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(standard.CRITICAL)
    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        client.setLevel(level)
        if was:
            logging.enable_progress_bar()


# One entry per base in use: a second party that names it gets the same tensors.
_in_use: weakref.WeakValueDictionary[tuple, Base] = weakref.WeakValueDictionary()


def load_base(
    model: ModelConfig,
    *,
    texts: Sequence[str] = (),
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    context: int = 512,
    progress: Progress | None = None,
) -> Base:
    """The base model that ``model`` describes, frozen, on ``device``.

    Args:
        model: a kind with sizes (built on the spot and pre-trained on ``texts``), or a path.
        texts: what ``pretrain = "own"`` reads.
        seed: draws the weights and the order of pre-training; the global random state stays.
        device: where it shall live.
        precision: ``"float32"`` or ``"bfloat16"``.
        context: tokens that a model built on the spot must take; rounded up to a power of two.
        progress: called as ``progress(step, steps, loss)`` while it is pre-trained.

    Returns:
        The base; the same object for the same description, as long as one party holds it.

    Raises:
        InputError: one line that names what is wrong with the description or the checkpoint.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if model.path is not None:
        from python_api.models.disk import load_disk

        key: tuple = ("path", model.path, str(device), precision, model.prompt)
        if (known := _in_use.get(key)) is None:
            known = load_disk(model.path, device=device, dtype=dtype, prompt=model.prompt)
        _in_use[key] = known
        return known
    from python_api.models.pretrain import pretrained, recipe

    config, encoder = model_config(model, context=context)
    plan = recipe(model, config, texts=texts, seed=seed)
    key = ("built", plan.key, str(device), precision, model.prompt)
    if (known := _in_use.get(key)) is None:
        built = pretrained(plan, config, encoder=encoder, device=device, progress=progress)
        tokenizer = byte_tokenizer(encoder=encoder, max_length=_context(context))
        known = Base(
            built.to(device=device, dtype=dtype), tokenizer, encoder=encoder, prompt=model.prompt
        )
    _in_use[key] = known
    return known


def model_config(model: ModelConfig, *, context: int = 512) -> tuple[Any, bool]:
    """The transformers config of a model built on the spot, and whether it is an encoder."""
    return build_config(
        model.kind or "",
        hidden_size=model.hidden_size,
        layers=model.layers,
        heads=model.heads,
        context=_context(context),
        extra=dict(model.config or {}),
    )


def build_config(
    kind: str,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    context: int = 512,
    extra: dict[str, Any] | None = None,
) -> tuple[Any, bool]:
    """A transformers config from a family name and three sizes.

    The intermediate size is ``4 * hidden_size``, the head size ``hidden_size / heads``; every
    family's own names for these are set, since several families do not build, or build other
    widths, from the three sizes alone. ``extra`` passes further keys and beats the rest.

    Returns:
        (config, encoder)

    Raises:
        InputError: an unknown kind, sizes that do not divide, or a key that the family refuses.

    Example:
        >>> config, encoder = build_config("gpt2", hidden_size=32, layers=2, heads=4)
        >>> config.n_inner, config.num_attention_heads, encoder
        (128, 4, False)
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        import difflib

        near = difflib.get_close_matches(kind, list(CONFIG_MAPPING), 1)
        hint = f"; nearest known: {near[0]!r}" if near else ""
        raise InputError(f"model.kind: {kind!r} is no model family of transformers{hint}")
    for name, size in (("hidden_size", hidden_size), ("layers", layers), ("heads", heads)):
        if not isinstance(size, int) or size < 1:
            raise InputError(f"model.{name}: {size!r}; expected a whole number above 0")
    if hidden_size % heads:
        raise InputError(f"model.heads: {heads} does not divide hidden_size = {hidden_size}")
    if hidden_size // heads % 2 and kind not in ("opt", "gpt2", "bert"):
        raise InputError(
            f"model.heads: head size {hidden_size // heads} is odd; rotary positions need it even"
        )
    tokenizer_ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wanted: dict[str, Any] = {
        "vocab_size": 5 + 256,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden_size // heads,
        "intermediate_size": 4 * hidden_size,
        "max_position_embeddings": context,
        **tokenizer_ids,
    }
    if kind == "opt":
        wanted |= {"ffn_dim": 4 * hidden_size, "word_embed_proj_dim": hidden_size}
    if kind == "gpt2":
        wanted |= {"n_inner": 4 * hidden_size, "n_positions": context}
    if kind == "gemma2":
        wanted |= {"query_pre_attn_scalar": hidden_size // heads, "sliding_window": context}
    # The base is frozen, and a dropout in it would draw from the global random state.
    wanted |= dict.fromkeys(DROPOUTS, 0.0)
    default = AutoConfig.for_model(kind)
    known = {name for name in wanted if _takes(default, name)}
    _check_extra(default, extra or {})
    values = {name: wanted[name] for name in known} | (extra or {})
    try:
        config = AutoConfig.for_model(kind, **values)
    except Exception as error:  # transformers validates with errors of many kinds
        first = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(f"model: {kind} does not build from these sizes: {first[0]}") from error
    return config, _is_encoder(config)


# Taken by every config class through keywords, and listed by none.
UNLISTED = ("rope_theta", "rope_scaling", "torch_dtype", "attn_implementation")


def _check_extra(default: Any, extra: dict[str, Any]) -> None:
    """Refuse a key that the config class does not know: it would be stored and never read."""
    import difflib
    import inspect

    known = {*default.to_dict(), *default.attribute_map, *UNLISTED}
    known |= {*inspect.signature(type(default).__init__).parameters} - {"self", "kwargs"}
    for key in extra:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1, 0.0)
            raise InputError(
                f"model.config.{key}: {type(default).__name__} has no such key; nearest known: "
                f"{near[0]}"
            )


def _takes(config: Any, name: str) -> bool:
    if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        return True
    return hasattr(config, name) or name in getattr(config, "attribute_map", {})


def _is_encoder(config: Any) -> bool:
    """Whether the family reads both sides; a family that is neither decoder nor encoder raises."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model.kind: {kind} is an encoder-decoder; expected one of the two")
    # Encoders such as bert also stand in the causal table (with is_decoder = true).
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return True
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise InputError(f"model.kind: {kind} has no language-model head in transformers")


def _context(tokens: int) -> int:
    return max(512, 1 << (max(1, tokens) - 1).bit_length())


def config_key(config: Any) -> str:
    """A text that two equal transformers configs share, whatever wrote them."""
    values = config.to_dict()
    for name in ("transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        values.pop(name, None)
    return json.dumps(values, sort_keys=True, default=str)
