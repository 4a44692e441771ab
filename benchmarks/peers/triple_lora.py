"""What the layers and the selection of `triple_lora` are compared with."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..problems import LoraProblem, SelectProblem
from .contender import Contender, Peer, PeerMissing

__all__ = [
    "ADDMM",
    "BARE",
    "KTH_VALUE",
    "PEFT",
    "PEFT_AUTOCAST",
    "PEFT_DEFAULT",
    "THREE_PRODUCTS",
    "TOPK_BATCHED",
    "TOPK_LOOP",
]


def _peft(problem: LoraProblem, *, cast_adapters: bool, autocast: bool) -> Contender:
    """PEFT's own `lora.Linear` on the problem's weight, made by `get_peft_model`.

    PEFT has no middle matrix: its B is the folded `B (T + I)`, so it computes the same output with
    one gradient less. The layer is called directly: the wrapper's cost is not charged to PEFT.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise PeerMissing(f"peft: {error}") from None

    base = nn.Linear(*reversed(problem.weight.shape), bias=False, device="meta")
    base.weight = nn.Parameter(problem.weight.detach(), requires_grad=False)
    rank = problem.A.shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=round(problem.scale * rank),
        target_modules=["proj"],
        lora_dropout=0.0,
        bias="none",
    )
    model = get_peft_model(
        nn.Sequential(OrderedDict(proj=base)), config, autocast_adapter_dtype=cast_adapters
    )
    layer = model.base_model.model.proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(problem.A)
        b.copy_(problem.folded_B)
    a.requires_grad_(problem.A.requires_grad)
    x, go = problem.x, problem.grad_output
    inputs = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    names = ("dx", "dA", "dB") if problem.A.requires_grad else ("dx", "dB")

    def context() -> Any:
        return torch.autocast(x.device.type, dtype=x.dtype) if autocast else nullcontext()

    def forward() -> Tensor:
        with context():
            return layer(x)

    def step() -> tuple[Tensor, ...]:
        with context():
            y = layer(x)
        return (y, *torch.autograd.grad(y, inputs, go))

    return Contender(forward, step, gradients=names, parameters=(base.weight, a, b))


def peft_same_dtype(problem: LoraProblem) -> Contender:
    return _peft(problem, cast_adapters=False, autocast=False)


def peft_default(problem: LoraProblem) -> Contender:
    """What `get_peft_model` gives without options: float32 adapters on a half-precision base."""
    return _peft(problem, cast_adapters=True, autocast=False)


def peft_autocast(problem: LoraProblem) -> Contender:
    """The same under `torch.autocast`, as the Hugging Face Trainer runs it."""
    return _peft(problem, cast_adapters=True, autocast=True)


class _AddmmLora(torch.autograd.Function):
    """Two-factor LoRA as Unsloth and Axolotl run it: library products, `addmm_` into the output.

    Own code in the strongest form of that idea: h = x A^T is saved rather than computed anew, and
    `dY B` is computed once for dA and dx.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        y = torch.mm(x, weight.t())
        h = torch.mm(x, a.t())
        y.addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, weight, a, b, h)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, b, h = ctx.saved_tensors
        dh = torch.mm(grad, b)
        da = torch.mm(dh.t(), x).mul_(ctx.scale) if x is not None else None
        db = torch.mm(grad.t(), h).mul_(ctx.scale)
        dx = torch.mm(grad, weight)
        dx.addmm_(dh, a, alpha=ctx.scale)
        return dx, None, da, db, None


def addmm_path(problem: LoraProblem) -> Contender:
    a = problem.A.detach().clone().requires_grad_(problem.A.requires_grad)
    b = problem.folded_B.detach().clone().requires_grad_()
    x, weight, go, scale = problem.x, problem.weight, problem.grad_output, problem.scale
    inputs = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    names = ("dx", "dA", "dB") if problem.A.requires_grad else ("dx", "dB")

    def forward() -> Tensor:
        return _AddmmLora.apply(x, weight, a, b, scale)

    def step() -> tuple[Tensor, ...]:
        y = forward()
        return (y, *torch.autograd.grad(y, inputs, go))

    return Contender(forward, step, gradients=names, parameters=(weight, a, b))


def three_products(problem: LoraProblem) -> Contender:
    """The triple-matrix layer as one writes it in PyTorch, with autograd's backward."""
    x, weight, go, scale = problem.x, problem.weight, problem.grad_output, problem.scale
    a, t, b = (p.detach().clone().requires_grad_(p.requires_grad) for p in problem.factors)
    inputs = [tensor for tensor in (x, a, t, b) if tensor.requires_grad]
    linear = nn.functional.linear

    def forward() -> Tensor:
        h = linear(x, a)
        return linear(x, weight) + scale * linear(linear(h, t) + h, b)

    def step() -> tuple[Tensor, ...]:
        y = forward()
        return (y, *torch.autograd.grad(y, inputs, go))

    names = ("dx", "dA", "dT", "dB") if problem.A.requires_grad else ("dx", "dT", "dB")
    return Contender(forward, step, gradients=names, parameters=(weight, a, t, b))


def bare_linear(problem: LoraProblem) -> Contender:
    """The frozen linear alone: the floor that every adapter stands on."""
    x, weight, go = problem.x, problem.weight, problem.grad_output

    def forward() -> Tensor:
        return nn.functional.linear(x, weight)

    def step() -> tuple[Tensor, ...]:
        y = forward()
        return (y, *torch.autograd.grad(y, [x], go))

    return Contender(forward, step, gradients=("dx",), parameters=(weight,))


# --- selection of the middle -------------------------------------------------------------------


def topk_loop(problem: SelectProblem) -> Contender:
    """Per layer: `topk`, indices ascending, gather."""
    k, shape = problem.rank**2, (problem.rank, problem.rank)
    scores, middle = problem.scores.flatten(1), problem.middle.flatten(1)

    def forward() -> tuple[Tensor, Tensor]:
        indices, values = [], []
        for row, entries in zip(scores, middle, strict=True):
            index = row.topk(k, sorted=False).indices.sort().values
            indices.append(index)
            values.append(entries.gather(0, index).view(shape))
        return torch.stack(values), torch.stack(indices)

    return Contender(forward, outputs=("T", "index"))


def topk_batched(problem: SelectProblem) -> Contender:
    """All layers in one `topk`, indices ascending, gather."""
    k, shape = problem.rank**2, (len(problem.scores), problem.rank, problem.rank)
    scores, middle = problem.scores.flatten(1), problem.middle.flatten(1)

    def forward() -> tuple[Tensor, Tensor]:
        index = scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        return middle.gather(1, index).view(shape), index

    return Contender(forward, outputs=("T", "index"))


def kth_value_mask(problem: SelectProblem) -> Contender:
    """All layers: the k-th value by `kthvalue`, then the entries above it by a mask: no sort.

    Where scores tie at the threshold it fails, and the row says so: it has no rule for ties.
    """
    k, shape = problem.rank**2, (len(problem.scores), problem.rank, problem.rank)
    scores, middle = problem.scores.flatten(1), problem.middle.flatten(1)
    size = scores.shape[1]

    def forward() -> tuple[Tensor, Tensor]:
        threshold = scores.kthvalue(size - k + 1, dim=1, keepdim=True).values
        index = (scores >= threshold).nonzero()[:, 1].view(shape[0], k)
        return middle.gather(1, index).view(shape), index

    return Contender(forward, outputs=("T", "index"))


PEFT = Peer("PEFT", "peft", peft_same_dtype)
PEFT_DEFAULT = Peer("PEFT default", "peft", peft_default, dtypes=("bfloat16", "float16"))
PEFT_AUTOCAST = Peer("PEFT autocast", "peft", peft_autocast, dtypes=("bfloat16", "float16"))
ADDMM = Peer("addmm path", "torch", addmm_path)
THREE_PRODUCTS = Peer("three products", "torch", three_products)
BARE = Peer("bare linear", "torch", bare_linear, same_work=False)
TOPK_LOOP = Peer("topk loop", "torch", topk_loop)
TOPK_BATCHED = Peer("topk batched", "torch", topk_batched)
KTH_VALUE = Peer("kthvalue + mask", "torch", kth_value_mask)
