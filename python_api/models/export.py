"""Writing an adapted model: a plain PEFT adapter, a merged checkpoint, or the native factors.

``B (T + I)`` times A is the same adapter with two factors, so that vanilla PEFT loads what was
trained with three. Slots that share a fused layer go out as one layer of k times the rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkernels import fold_middle
from python_api.errors import InputError
from python_api.models.build import quiet

if TYPE_CHECKING:
    from python_api.models.adapted import AdaptedModel
    from python_api.models.layer import AdaptedLinear

__all__ = ["HEAD_FILE", "Sizes", "export", "load_native", "read_sizes"]

HEAD_FILE = "head.safetensors"  # weight (C, D) and bias (C,) of the private head, float32
FORMATS = ("peft", "merged", "native")


def export(model: AdaptedModel, folder: Path, *, format: str = "peft") -> Path:
    """Write ``model``, with the middle that is set, into ``folder``.

    - ``"peft"``: ``adapter_config.json`` and ``adapter_model.safetensors`` for
      ``PeftModel.from_pretrained``; the private head in ``head.safetensors`` beside them.
    - ``"merged"``: a plain transformers checkpoint with its tokenizer, ``W + scale * B (T + I) A``;
      the private head beside it.
    - ``"native"``: A, B, T and head as they are, and their sizes.

    Raises:
        InputError: an unknown format, or ``"peft"`` of a model without adapters.
    """
    if format not in FORMATS:
        raise InputError(f"--format: {format!r}; expected one of {' '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if format == "native":
            _native(model, folder)
            return folder
        model._bind_middle()
        if format == "peft":
            if model.train_base:
                raise InputError("--format: peft, but all weights were trained; expected merged")
            _peft(model, folder)
        else:
            _merged(model, folder)
        if model.head is not None:
            _save(dict(model.head.named_parameters()), folder / HEAD_FILE)
            labels = {"pooling": "mean" if model.encoder else "last", "file": HEAD_FILE}
            (folder / "head.json").write_text(json.dumps(labels, indent=1))
    return folder


def _folded(layer: AdaptedLinear) -> tuple[Tensor, Tensor]:
    """(A, B (T + residual*I)) of a layer, float32, without its scale."""
    A, T, B = layer.factors()
    return A, B if T is None else fold_middle(B, T, scale=1.0, residual=layer.residual)


def _peft(model: AdaptedModel, folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, layer in model.adapted():
        A, B = _folded(layer)
        tensors[f"base_model.model.{path}.lora_A.weight"] = A
        tensors[f"base_model.model.{path}.lora_B.weight"] = B
        if len(layer.slots) > 1:
            ranks[path] = A.shape[0]
            alphas[path] = len(layer.slots) * model.alpha
    # Written by hand: these keys load in every PEFT version, and importing peft takes seconds.
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if model.encoder else "CAUSAL_LM",
        "base_model_name_or_path": model.base.path or "../base",
        "r": model.rank,
        "lora_alpha": model.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(layer.conv1d for _, layer in model.adapted()),
        # Whole names: "output.dense" and "c_proj" end the names of two layers each.
        "target_modules": [path for path, _ in model.adapted()],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "inference_mode": True,
    }
    _save(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _merged(model: AdaptedModel, folder: Path) -> None:
    import copy

    weights = model.model.state_dict()
    for path, layer in model.adapted():
        A, B = _folded(layer)
        delta = layer.scale * (B @ A)
        name = f"{path}.weight"
        delta = delta.t() if layer.conv1d else delta
        weights[name] = (weights[name].float() + delta).to(weights[name].dtype)
    # An unadapted tree of the same class, since the adapted one holds layers of ours. Only the
    # merged weights are new; the rest are the frozen tensors.
    plain = copy.deepcopy(model.base.model, _memo(model.base.model))
    for name, tensor in weights.items():
        module, _, leaf = name.rpartition(".")
        owner = plain.get_submodule(module)
        if isinstance(getattr(owner, leaf, None), torch.nn.Parameter):
            setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    plain.tie_weights()
    with quiet():
        plain.save_pretrained(folder)
    model.base.tokenizer.save_pretrained(folder)


def _memo(module: torch.nn.Module) -> dict[int, object]:
    return {id(t): t for t in (*module.parameters(), *module.buffers())}


def _native(model: AdaptedModel, folder: Path) -> None:
    state = model.adapter_state()
    if model.middle is not None:
        state["middle"] = model.middle
    _save(state, folder / "adapter.safetensors")
    sizes = {
        "rank": model.rank,
        "scale": model.scale,
        "residual": model.residual,
        "layers": model.n_layers,
        "slots": list(model.slots),
        "base": model.base.path or "../base",
        "base_hash": model.base.hash,
    }
    (folder / "adapter.json").write_text(json.dumps(sizes, indent=1))


@dataclass(frozen=True)
class Sizes:
    """What ``adapter.json`` says of a saved model. base: a path, ``"../base"`` for its own."""

    rank: int
    scale: float
    residual: bool
    layers: int
    slots: tuple[str, ...]
    base: str


def read_sizes(folder: Path) -> Sizes:
    """The sizes of what ``"native"`` wrote into ``folder``."""
    found = json.loads((folder / "adapter.json").read_text())
    found["slots"] = tuple(found["slots"])
    return Sizes(**{name: found[name] for name in Sizes.__dataclass_fields__})


def load_native(model: AdaptedModel, folder: Path) -> None:
    """Load what ``"native"`` wrote into a model of the same sizes.

    Raises:
        InputError: other sizes than those that were saved.
    """
    from safetensors.torch import load_file

    sizes = read_sizes(folder)
    found = {"rank": model.rank, "layers": model.n_layers, "slots": tuple(model.slots)}
    for name, value in found.items():
        if (kept := getattr(sizes, name)) != value:
            raise InputError(f"{folder}: {name} {kept} was saved, the model has {value}")
    state = load_file(folder / "adapter.safetensors")
    middle = state.pop("middle", None)
    model.load_adapter_state(state)
    model.set_scale(sizes.scale)
    if middle is not None:
        middle = middle.to(next(model.parameters()).device)
    model.set_middle(middle, residual=sizes.residual)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # Clones: safetensors refuses tensors that share memory.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})
