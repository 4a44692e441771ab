"""Schemas and fake implementations of the compiled ops; csrc/triple_lora registers the kernels.

Private: they run below autograd, check nothing and return empty tensors for gradients that were
not asked for. ``need`` is a bit mask in the order x, A, T, B, weight, bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEED_X, NEED_A, NEED_T, NEED_B, NEED_WEIGHT, NEED_BIAS = (1 << i for i in range(6))

_SCHEMAS = {
    # h (N, r) is what backward needs besides the inputs; float32 (float64 for float64 input).
    "triple_lora_forward": (
        "(Tensor x, Tensor? weight, Tensor? bias, Tensor? base, Tensor A, Tensor? T, Tensor B, "
        "Tensor? in_index, Tensor? out_index, Tensor? seed, int block, int out_features, "
        "float scale, bool residual, float dropout_p) -> (Tensor y, Tensor h)"
    ),
    "triple_lora_backward": (
        "(Tensor grad, Tensor? x, Tensor? h, Tensor? weight, Tensor A, Tensor? T, Tensor B, "
        "Tensor? in_index, Tensor? out_index, Tensor? seed, int block, int in_features, "
        "float scale, bool residual, float dropout_p, int need) "
        "-> (Tensor dx, Tensor dA, Tensor dT, Tensor dB, Tensor dweight, Tensor dbias)"
    ),
    "select_index": "(Tensor scores, int rank, Tensor? previous) -> Tensor",
    "gather_middle": "(Tensor middle, Tensor index, int rank) -> Tensor",
    # dmiddle, and dscores = grad * middle at the index (empty without ``middle``).
    "scatter_middle": "(Tensor grad, Tensor? middle, Tensor index, int size) -> (Tensor, Tensor)",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"fedkernels::{_name}", _schema)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("fedkernels::triple_lora_forward")
def _(x, weight, bias, base, A, T, B, in_index, out_index, seed, block, out_features, *_):
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    y = x.new_empty(*x.shape[:-1], out_features)
    return y, x.new_empty(rows, A.shape[0], dtype=_accumulator(x.dtype))


@torch.library.register_fake("fedkernels::triple_lora_backward")
def _(grad, x, h, weight, A, T, B, in_index, out_index, seed, block, in_features, s, r, p, need):
    def like(tensor: Tensor | None, bit: int) -> Tensor:
        wanted = tensor is not None and need & bit
        return tensor.new_empty(tensor.shape) if wanted else grad.new_empty(0)

    dx = grad.new_empty(*grad.shape[:-1], in_features) if need & NEED_X else grad.new_empty(0)
    bias = grad.new_empty(grad.shape[-1]) if need & NEED_BIAS else grad.new_empty(0)
    return (
        dx,
        like(A, NEED_A),
        like(T, NEED_T),
        like(B, NEED_B),
        like(weight, NEED_WEIGHT),
        bias,
    )


@torch.library.register_fake("fedkernels::select_index")
def _(scores, rank, previous):
    return scores.new_empty(*scores.shape[:-2], rank * rank, dtype=torch.int64)


@torch.library.register_fake("fedkernels::gather_middle")
def _(middle, index, rank):
    return middle.new_empty(*index.shape[:-1], rank, rank)


@torch.library.register_fake("fedkernels::scatter_middle")
def _(grad, middle, index, size):
    shape = (*index.shape[:-1], size, size)
    scores = grad.new_empty(0) if middle is None else grad.new_empty(shape)
    return grad.new_empty(shape), scores


# Bound once: the chain torch.ops.a.b costs 0.3 us a call.
triple_lora_forward = torch.ops.fedkernels.triple_lora_forward.default
triple_lora_backward = torch.ops.fedkernels.triple_lora_backward.default
select_index = torch.ops.fedkernels.select_index.default
gather_middle = torch.ops.fedkernels.gather_middle.default
scatter_middle = torch.ops.fedkernels.scatter_middle.default
