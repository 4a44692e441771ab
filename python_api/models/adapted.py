"""A frozen transformers model with private adapters, a shared middle and a private head.

Every adapted layer computes ``y = x W^T + b + scale * x A^T (T + residual*I)^T B^T`` through
``fedkernels.triple_lora_linear``. A and B are private parameters; the middle T comes from outside
(``AdaptedModel.set_middle``), so that an algorithm may share it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_api.errors import InputError
from python_api.models.layer import AdaptedLinear
from python_api.models.slots import SLOTS, SlotSite

if TYPE_CHECKING:
    from python_api.models.batching import Batch
    from python_api.models.build import Base

__all__ = ["AdaptedModel"]


class AdaptedModel(nn.Module):
    """Frozen base, adapters on some of its layers, and a head.

    Args:
        base: the frozen model and its tokenizer (``build.load_base``). Its tensors are shared,
            never copied, unless ``train_base``.
        sites: ``slots.find_slots(base.model)``: one dict per layer.
        rank: r of every adapter.
        alpha: the adapters' scale is ``alpha / rank``.
        n_labels: classes of the private linear head, or None for generation (the model's own head).
        seed: draws A and the head; no global random state is read or moved.
        class_weight: ``(C,)`` weights of the cross-entropy, or None.
        gradient_checkpointing: recompute activations in the backward pass.
        train_base: train all weights instead of adapters (``adapters = false``).

    Attributes:
        n_layers, slots, rank, scale: sizes; ``slots`` in the order of ``SLOTS``.
        A, B: ``A[l][slot]`` ``(r, D_in)`` and ``B[l][slot]`` ``(D_out_slot, r)``, float32. A starts
            Kaiming-uniform with a = sqrt(5), B at 0: the adapted model starts as the base.
        head: ``nn.Linear(D, C)`` or None.

    Raises:
        InputError: an encoder asked to generate, or layers with different slots.
    """

    # transformers has no types, and nn.Module's own would make each of these a Tensor or a Module.
    model: Any
    A: Any
    B: Any
    class_weight: Tensor | None

    def __init__(
        self,
        base: Base,
        sites: Sequence[dict[str, SlotSite]],
        *,
        rank: int,
        alpha: float,
        n_labels: int | None,
        seed: int,
        class_weight: Tensor | None = None,
        gradient_checkpointing: bool = False,
        train_base: bool = False,
    ) -> None:
        super().__init__()
        if base.encoder and n_labels is None:
            raise InputError("task.kind: an encoder cannot generate; expected classification")
        if any(set(layer) != set(sites[0]) for layer in sites):
            raise InputError("modules: the layers of this model do not all have the same slots")
        self.base = base
        self.sites = list(sites)
        self.n_layers = len(sites)
        self.slots = tuple(slot for slot in SLOTS if slot in sites[0])
        self.rank = rank
        self.alpha = float(alpha)
        self.scale = self.alpha / rank
        self.n_labels = n_labels
        self.encoder = base.encoder
        self.residual = True
        self.train_base = train_base
        self._middle: Tensor | None = None
        self._keep: Tensor | None = None

        self.model = _share(base.model, copy_weights=train_base)
        if train_base:
            self.model.requires_grad_(True)
        self.model.config.use_cache = False
        generator = torch.Generator().manual_seed(seed)
        self._add_adapters(generator)
        device = next(self.model.parameters()).device
        width = _hidden_width(self.model, base.encoder)
        self.head = None
        if n_labels is not None:
            # From the meta device, so that nn.Linear draws nothing from the global random state.
            self.head = nn.Linear(width, n_labels, device="meta")
            for name, shape in (("weight", (n_labels, width)), ("bias", (n_labels,))):
                value = _uniform(shape, width, generator).to(device)
                setattr(self.head, name, nn.Parameter(value))
        self.register_buffer("class_weight", class_weight, persistent=False)
        self._backbone().register_forward_hook(self._gather)
        if gradient_checkpointing:
            # Renamed in transformers 5; earlier releases know the first name alone.
            enable = getattr(
                self.model,
                "activation_checkpointing_enable",
                self.model.gradient_checkpointing_enable,
            )
            enable({"use_reentrant": False})
            # Without it nothing that enters the first layer asks for a gradient.
            self.model.enable_input_require_grads()

    # ---- the middle -------------------------------------------------------------------------

    def set_middle(self, T: Tensor | None, *, residual: bool = True) -> None:
        """Set the middle matrices of all layers and slots.

        Args:
            T: ``(L, S, r, r)`` in the order of ``slots``, may carry a gradient; None is plain LoRA.
            residual: add the identity to T.
        """
        if T is not None:
            want = (self.n_layers, len(self.slots), self.rank, self.rank)
            if tuple(T.shape) != want:
                raise ValueError(f"T has shape {tuple(T.shape)}, expected {want}")
        self._middle = T
        self.residual = residual if T is not None else True

    @property
    def middle(self) -> Tensor | None:
        """The middle that was set, ``(L, S, r, r)``."""
        return self._middle

    def _bind_middle(self) -> None:
        # One unbind a forward pass: its backward stacks all gradients at once, where an index per
        # layer would write a zero-filled tensor of T's size for each.
        T = self._middle
        flat = None if T is None else T.flatten(0, 1).unbind(0)
        for layer in self._adapted:
            layer.residual = self.residual
            layer.middles = None if flat is None else [flat[n] for n in layer.places]

    # ---- forward ----------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states ``(N, S, D)``, without computing token logits."""
        return self._backbone()(**self._inputs(batch)).last_hidden_state

    def pooled(self, batch: Batch) -> Tensor:
        """``(N, D)`` float32: the mean over real tokens (encoders) or the last one (decoders)."""
        hidden = self.hidden(batch)
        mask = batch.attention_mask
        if self.encoder:
            weight = mask.unsqueeze(-1).to(torch.float32)
            return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(1)
        return hidden[torch.arange(len(batch), device=mask.device), last].float()

    def logits(self, batch: Batch) -> Tensor:
        """``(N, C)`` class logits, or ``(M, V)`` token logits that predict the M response tokens
        of the batch, row by row; no logits are computed at other positions."""
        if self.head is not None:
            return self.head(self.pooled(batch))
        if batch.response_mask is None:
            raise ValueError("the batch holds no answers; expected a response_mask")
        keep = batch.response_mask.clone()
        keep[:, :-1] = batch.response_mask[:, 1:]
        keep[:, -1] = False
        self._keep = keep
        try:
            return self.model(**self._inputs(batch)).logits[0].float()
        finally:
            self._keep = None

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy over rows or response tokens, logits)."""
        logits = self.logits(batch)
        weight = self.class_weight if self.head is not None else None
        return F.cross_entropy(logits, batch.targets, weight=weight), logits

    def forward(self, batch: Batch) -> Tensor:
        return self.logits(batch)

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        self._bind_middle()
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.left and self.model.config.model_type != "opt":  # opt counts from the mask itself
            inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        return inputs

    def _backbone(self) -> nn.Module:
        if self.encoder:
            return self.model
        return self.model.get_decoder()

    def _gather(self, module: nn.Module, args, output):
        """Forward hook: leave only the positions whose logits are asked for, so that the model's
        own head (with whatever scaling or capping it does) runs over them alone."""
        if self._keep is not None:
            output.last_hidden_state = output.last_hidden_state[self._keep].unsqueeze(0)
        return output

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of left-padded prompts, with a key-value cache; token lists that
        end before the end mark."""
        from transformers import GenerationConfig

        tokenizer = self.base.tokenizer
        self._bind_middle()
        end = tokenizer.eos_token_id
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end,
            bos_token_id=tokenizer.bos_token_id,
            use_cache=True,
        )
        was = self.training
        self.eval()
        try:
            out = self.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=settings,
            )
        finally:
            self.train(was)
        rows = out[:, batch.input_ids.shape[1] :].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    # ---- parameters -------------------------------------------------------------------------

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """A and B of all layers (with ``train_base``: the weights of the model)."""
        if self.train_base:
            yield from self.model.parameters()
            return
        for group in (self.A, self.B):
            for layer in group:
                yield from layer.values()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The private head's weight and bias; nothing for generation."""
        if self.head is not None:
            yield from self.head.parameters()

    def adapter_state(self) -> dict[str, Tensor]:
        """Everything private that training moves, by name: adapters, head (and with ``train_base``
        the model). Clones."""
        return {name: value.detach().clone() for name, value in self._named().items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``adapter_state`` gave; a missing or unknown name or another shape raises."""
        with torch.no_grad():
            own = self._named()
            if own.keys() != state.keys():
                odd = sorted(own.keys() ^ state.keys())
                raise ValueError(f"adapter state: entries {odd[:3]} are missing or unknown")
            for name, value in own.items():
                if value.shape != state[name].shape:
                    raise ValueError(
                        f"adapter state: {name} has shape {tuple(state[name].shape)}, "
                        f"expected {tuple(value.shape)}"
                    )
                value.copy_(state[name])

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for l, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            for slot in A:
                named[f"{l}.{slot}.A"] = A[slot]
                named[f"{l}.{slot}.B"] = B[slot]
        if self.head is not None:
            named |= {f"head.{name}": value for name, value in self.head.named_parameters()}
        if self.train_base:
            named |= {f"model.{name}": value for name, value in self.model.named_parameters()}
        return named

    def _add_adapters(self, generator: torch.Generator) -> None:
        """Replace the adapted layers; a fused layer is replaced once for all of its slots."""
        self.A = nn.ModuleList()
        self.B = nn.ModuleList()
        self._paths: tuple[str, ...] = ()
        self._adapted: tuple[AdaptedLinear, ...] = ()
        if self.train_base:
            return
        adapted = []
        for l, sites in enumerate(self.sites):
            A, B = nn.ParameterDict(), nn.ParameterDict()
            by_path: dict[str, list[str]] = {}
            for slot in self.slots:
                by_path.setdefault(sites[slot].path, []).append(slot)
                weight = self._slot_weight(sites[slot])
                A[slot] = _uniform((self.rank, weight.shape[1]), weight.shape[1], generator).to(
                    weight.device
                )
                B[slot] = torch.zeros(weight.shape[0], self.rank, device=weight.device)
            for path, slots in by_path.items():
                layer = AdaptedLinear(
                    self.model.get_submodule(path),
                    slots=[(slot, sites[slot].rows) for slot in slots],
                    A=[A[slot] for slot in slots],
                    B=[B[slot] for slot in slots],
                    places=[l * len(self.slots) + self.slots.index(slot) for slot in slots],
                    scale=self.scale,
                    conv1d=sites[slots[0]].conv1d,
                )
                self.model.set_submodule(path, layer)
                adapted.append((path, layer))
            self.A.append(A)
            self.B.append(B)
        # A tuple: the layers are already modules of self.model.
        self._paths = tuple(path for path, _ in adapted)
        self._adapted = tuple(layer for _, layer in adapted)

    def _slot_weight(self, site: SlotSite) -> Tensor:
        weight = self.model.get_submodule(site.path).weight
        weight = weight.t() if site.conv1d else weight
        return weight if site.rows is None else weight[site.rows]

    def slot_weight(self, layer: int, slot: str) -> Tensor:
        """The frozen weight of one slot, ``(D_out_slot, D_in)``, a view."""
        return self._slot_weight(self.sites[layer][slot])

    def set_scale(self, scale: float) -> None:
        """Set the factor of every adapter (``basis = "svd"`` fixes it at 1)."""
        self.scale = float(scale)
        self.alpha = self.scale * self.rank
        for layer in self._adapted:
            layer.scale = self.scale

    def adapted(self) -> list[tuple[str, AdaptedLinear]]:
        """(path, layer) of every adapted layer, first layer first."""
        return list(zip(self._paths, self._adapted, strict=True))

    # ---- bases and export: one file each ---------------------------------------------------

    def set_basis_svd(self, *, rotated: int | None = None) -> None:
        """Freeze ``A = V_r^T`` and ``B = U_r`` of each slot's own weight at scale 1; see
        ``basis.set_basis_svd``."""
        from python_api.models.basis import set_basis_svd

        set_basis_svd(self, rotated=rotated)

    def export(self, folder: str | Path, *, format: str = "peft") -> Path:
        """Write ``"peft"``, ``"merged"`` or ``"native"`` with the middle that is set; see
        ``export.export``."""
        from python_api.models.export import export

        return export(self, Path(folder), format=format)


def _share(model: nn.Module, *, copy_weights: bool) -> Any:
    """A module tree of its own over the same tensors."""
    memo: dict[int, object] = {}
    if not copy_weights:
        memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _uniform(shape: tuple[int, ...], width: int, generator: torch.Generator) -> Tensor:
    # Kaiming-uniform with a = sqrt(5) over fan-in `width`: the bound is 1 / sqrt(width).
    bound = 1 / math.sqrt(width)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _hidden_width(model: Any, encoder: bool) -> int:
    if encoder:
        return model.config.hidden_size
    # What the model's own head reads: opt may project its hidden states first.
    return model.get_output_embeddings().weight.shape[1]
