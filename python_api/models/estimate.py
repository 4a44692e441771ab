"""What a party will need, before anything is trained: parameters, memory, bytes per round.

The formula for memory: the frozen weights, plus 16 bytes for each trained float32 number (its
value, its gradient, two AdamW moments), plus what one training step keeps alive at its fullest
moment times the allocator's overhead. What a step keeps is counted, not guessed: one step runs on
tensors that have shapes but no data, and every storage is followed from its birth to its end. Only
`config.json` is read.

The overhead is 1.35 on the CPU, since glibc keeps freed pieces: over nine cases (llama, gemma,
gpt2, opt, bert; hidden 64 to 1024) the prediction then is 0.86 to 1.14 of the measured peak; with
every tensor mapped on its own (`MALLOC_MMAP_THRESHOLD_=65536`) the bare count was 0.95 to 1.06 of
it. On CUDA the overhead is taken as 1.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from python_api.models.slots import find_slots

if TYPE_CHECKING:
    from python_api.config import PartyConfig, RunConfig

__all__ = ["Estimate", "estimate", "round_bytes", "step_bytes"]

CPU_OVERHEAD = 1.35


@dataclass(frozen=True)
class Estimate:
    """The sizes of one party.

    Args:
        parameters: numbers in the frozen base.
        adapter_parameters, head_parameters: numbers in A and B, and in the private head.
        layers, slots: transformer layers, and the slots that are adapted.
        encoder: the model sees both sides of a text (and cannot generate).
        base_bytes: the frozen base in memory; parties that share one hold it once.
        trained_bytes: values, gradients and AdamW moments of all that trains.
        step_bytes: what a training step keeps at its fullest moment.
        overhead: what the allocator adds to a step's bytes.
        context: tokens that the model takes, or None if any number.
    """

    parameters: int
    adapter_parameters: int
    head_parameters: int
    layers: int
    slots: tuple[str, ...]
    encoder: bool
    base_bytes: int
    trained_bytes: int
    step_bytes: int
    overhead: float
    context: int | None

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of the party's memory while it trains, without Python and libraries."""
        return self.base_bytes + self.trained_bytes + round(self.overhead * self.step_bytes)


def estimate(
    party: PartyConfig,
    run: RunConfig,
    *,
    n_labels: int | None,
    length: int | None = None,
) -> Estimate:
    """Size up one party of a run.

    Args:
        party: its config; of a checkpoint from disk only ``config.json`` is read.
        run: names the algorithm, whose middle matrices count too.
        n_labels: classes, or None for generation.
        length: tokens of the longest row, if it is known to be shorter than ``max_length``.

    Raises:
        InputError: the description builds no model, or names a slot that is not there.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from python_api.models.adapted import AdaptedModel
    from python_api.models.build import Base, model_config

    train = party.train
    if party.model.path is not None:
        from python_api.models.build import _is_encoder
        from python_api.models.disk import read_config

        config = read_config(party.model.path)
        encoder = _is_encoder(config)
    else:
        config, encoder = model_config(party.model, context=train.max_length)
    dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    device = party.device or run.device
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    length = min(length or train.max_length, train.max_length)
    frozen_basis = run.algorithm == "h2tune" and run.h2tune.basis in ("svd", "rotated")
    with FakeTensorMode(allow_non_fake_inputs=True):
        base = Base(_empty_model(config, dtype, encoder=encoder), None, encoder=encoder)
        model = AdaptedModel(
            base,
            find_slots(base.model, modules=party.modules, slots=party.slots),
            rank=party.rank,
            alpha=party.alpha,
            n_labels=n_labels,
            seed=0,
            gradient_checkpointing=train.gradient_checkpointing,
            train_base=not train.adapters,
        )
        model.train()
        T = None
        if run.algorithm == "h2tune":
            T = torch.zeros(model.n_layers, len(model.slots), model.rank, model.rank)
            T.requires_grad_()
            if frozen_basis:
                for parameter in model.adapter_parameters():
                    parameter.requires_grad_(False)
        kept = step_bytes(model, rows=train.batch_size, length=length, T=T)
        tensors = [*base.model.parameters(), *base.model.buffers()]
        sizes = {
            "parameters": sum(p.numel() for p in base.model.parameters()),
            "adapter_parameters": _count(v for part in (model.A, model.B) for v in _values(part)),
            "head_parameters": _count(model.head_parameters()),
            "base_bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
        trained = sum(
            p.numel() * (3 * p.element_size() + (4 if p.dtype == torch.float32 else 2))
            for p in model.parameters()
            if p.requires_grad
        )
    if run.algorithm == "h2tune":
        # G, M, DeltaM with gradient and two moments, S with its gradient.
        middle = 4 * len(model.slots) * run.h2tune.middle_rank**2
        trained += middle * 8 * model.n_layers
    return Estimate(
        **sizes,
        layers=model.n_layers,
        slots=model.slots,
        encoder=encoder,
        trained_bytes=trained,
        step_bytes=kept,
        overhead=1.0 if cuda else CPU_OVERHEAD,
        context=getattr(config, "max_position_embeddings", None),
    )


def _values(part: Any) -> list[Tensor]:
    return [value for layer in part for value in layer.values()]


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _empty_model(config: Any, dtype: torch.dtype, *, encoder: bool):
    """The model of `config` with shapes and no data (inside a FakeTensorMode)."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if encoder else AutoModelForCausalLM
    return kind.from_config(config, dtype=dtype)


class _Living(TorchDispatchMode):
    """Follows every storage from its birth to its end; `peak` is the most at once, in bytes."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in known:
            self.seen.add(tensor.untyped_storage())

    def _end(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    size = storage.nbytes()
                    self.alive += size
                    weakref.finalize(storage, self._end, size)
        self.peak = max(self.peak, self.alive)
        return out


def step_bytes(model: Any, *, rows: int, length: int, T: Tensor | None = None) -> int:
    """The most bytes that a forward and backward pass of `rows` items of `length` tokens keeps
    alive beside the parameters and their gradients. Runs inside a FakeTensorMode.

    For generation token logits at every position are counted: an upper bound, since only response
    tokens get logits.
    """
    from python_api.models.batching import Batch

    ids = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.ones(rows, length, dtype=torch.int64)
    batch = Batch(ids, mask, torch.zeros(rows, dtype=torch.int64))
    known = [*model.parameters(), *model.buffers(), *([] if T is None else [T])]
    with _Living(known) as living:
        model.set_middle(T)
        if model.head is not None:
            loss, _ = model.loss(batch)
        else:
            logits = model.model(**model._inputs(batch)).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        del loss
    gradients = sum(
        p.grad.numel() * p.grad.element_size()
        for p in known
        if getattr(p, "grad", None) is not None
    )
    model.zero_grad(set_to_none=True)
    # Gradients are born during the backward pass, while activations end: what is at the peak of
    # both is bounded by each, and gradients are counted with the trained numbers.
    return max(living.peak - gradients, 0)


def round_bytes(estimates: Mapping[str, Estimate], run: RunConfig) -> dict[str, tuple[int, int]]:
    """(down, up) bytes of one round by party, without framing.

    h2tune: the shared tensor is own slots x L* x R^2 x 4 bytes in both directions; up go also
    4 L* L_k bytes of relation and slots L_k R^2 / 8 bytes of selected positions. fedit: all A and B
    in both directions. Others send nothing.
    """
    found: dict[str, tuple[int, int]] = {}
    deepest = max(e.layers for e in estimates.values())
    for name, each in estimates.items():
        if run.algorithm == "h2tune":
            R, S = run.h2tune.middle_rank, len(each.slots)
            shared = S * deepest * R * R * 4
            bits = -(-S * each.layers * R * R // 8)
            found[name] = (shared, shared + 4 * deepest * each.layers + bits)
        elif run.algorithm == "fedit":
            found[name] = (4 * each.adapter_parameters, 4 * each.adapter_parameters)
        else:
            found[name] = (0, 0)
    return found
