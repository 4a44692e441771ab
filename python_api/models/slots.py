"""The seven module slots, the same for every architecture: ``q k v o gate up down``.

A slot names a weight by its role, so that parties with different model families can exchange what
they learn about that role. Two slots of one family may live in one fused layer (``c_attn`` of
gpt2): then each has its own rows of that layer's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from python_api.errors import InputError

__all__ = ["SLOTS", "SlotSite", "adapted_layers", "find_slots"]

SLOTS = ("q", "k", "v", "o", "gate", "up", "down")

_LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_OPT = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
# "path[i/n]": the i-th of n equal parts of that layer's output rows.
_GPT2 = {
    "q": "attn.c_attn[0/3]",
    "k": "attn.c_attn[1/3]",
    "v": "attn.c_attn[2/3]",
    "o": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
# Paths are whole paths below a transformer layer: "output.dense" alone would also be the end of
# bert's "attention.output.dense", and "c_proj" that of two layers of gpt2.
_FAMILIES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"), _LLAMA),
    "opt": _OPT,
    "gpt2": _GPT2,
    **dict.fromkeys(("bert", "minilm"), _BERT),
}


@dataclass(frozen=True)
class SlotSite:
    """Where one slot of one layer lives.

    Args:
        path: the module's full path below the model's root.
        rows: the slot's rows of the layer's output, or None for all of them.
        conv1d: the layer stores its weight as ``(D_in, D_out)``, as gpt2's ``Conv1D`` does.
    """

    path: str
    rows: slice | None = None
    conv1d: bool = False


def find_slots(
    model: nn.Module,
    *,
    modules: str | Sequence[str] = "all",
    slots: Mapping[str, str] | None = None,
) -> list[dict[str, SlotSite]]:
    """The slots of every transformer layer of ``model``.

    Args:
        model: a transformers model; weights may be on the meta device.
        modules: ``"all"`` or the slots to adapt; a slot that the family does not have is left out.
        slots: ``{slot: path below a layer}`` for a family that is not listed; ``"path[i/n]"`` is
            the i-th of n equal parts of a fused layer's output.

    Returns:
        One dict per layer, first layer first, in the order of ``SLOTS``.

    Raises:
        InputError: an unknown slot, a family that is not listed, or a path that is no linear layer.

    Example:
        >>> import transformers
        >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...     num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        >>> sites = find_slots(transformers.LlamaForCausalLM(config), modules=["q", "down"])
        >>> sites[1]["down"].path
        'model.layers.1.mlp.down_proj'
    """
    wanted = _wanted(modules)
    prefix, layers = adapted_layers(model)
    table = _table(model, layers[0], slots)
    found: list[dict[str, SlotSite]] = []
    for index, layer in enumerate(layers):
        sites: dict[str, SlotSite] = {}
        for slot in SLOTS:
            if slot in wanted and slot in table:
                sites[slot] = _site(layer, f"{prefix}.{index}", table[slot], slot)
        found.append(sites)
    if not found[0]:
        raise InputError(
            f"modules: {_family(model)} has none of {' '.join(wanted)}; "
            f"it has {' '.join(s for s in SLOTS if s in table)}"
        )
    return found


def adapted_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the transformer layers of ``model``."""
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        raise InputError(f"model: {_family(model)} has no list of {depth} transformer layers")
    return min(lists, key=lambda item: item[0].count("."))


def _family(model: nn.Module) -> str:
    return str(getattr(model.config, "model_type", type(model).__name__))


def _wanted(modules: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(modules, str):
        if modules == "all":
            return SLOTS
        modules = (modules,)
    for name in modules:
        if name not in SLOTS:
            raise InputError(f"modules: unknown slot {name!r}; expected some of {' '.join(SLOTS)}")
    if not modules:
        raise InputError(f"modules: empty; expected some of {' '.join(SLOTS)}")
    return tuple(slot for slot in SLOTS if slot in modules)


def _table(
    model: nn.Module, layer: nn.Module, slots: Mapping[str, str] | None
) -> Mapping[str, str]:
    if slots:
        for name in slots:
            if name not in SLOTS:
                raise InputError(
                    f"slots: unknown slot {name!r}; expected some of {' '.join(SLOTS)}"
                )
        return slots
    family = _family(model)
    if family in _FAMILIES:
        return _FAMILIES[family]
    names = [path for path, module in layer.named_modules() if _is_linear(module)]
    raise InputError(
        f"model: {family} is no listed family; give a slots table. Linear layers found below a "
        f"transformer layer: {' '.join(names) or 'none'}"
    )


def _site(layer: nn.Module, prefix: str, spec: str, slot: str) -> SlotSite:
    path, bracket, part = spec.partition("[")
    module: Any = None
    with contextlib.suppress(AttributeError):
        module = layer.get_submodule(path)
    if not _is_linear(module):
        names = [name for name, child in layer.named_modules() if _is_linear(child)]
        raise InputError(
            f"slots.{slot}: {prefix}.{path} is no linear layer; found {' '.join(names) or 'none'}"
        )
    conv1d = _is_conv1d(module)
    rows = None
    if bracket:
        out = module.weight.shape[1 if conv1d else 0]
        try:
            i, n = (int(number) for number in part.rstrip("]").split("/"))
        except ValueError:
            i, n = -1, 0
        if not 0 <= i < n or out % n:
            raise InputError(
                f"slots.{slot}: {spec!r} is no part of {out} rows; expected path[i/n], n | {out}"
            )
        rows = slice(i * out // n, (i + 1) * out // n)
    return SlotSite(f"{prefix}.{path}", rows, conv1d)


def _is_conv1d(module: nn.Module | None) -> bool:
    # By name: transformers has moved the class between modules, and importing it costs a second.
    return type(module).__name__ == "Conv1D"


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)
