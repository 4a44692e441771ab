"""The differentiable wrappers around the compiled ops (they run below autograd).

Two forms of one Function. The ctx form runs in eager mode and under Dynamo. Its twin with
``setup_context`` supports torch.func and vmap, costs 20-30 us more a call, and runs only while
functorch transforms are active. A second derivative raises in both: ``once_differentiable`` gave
a silent 0 under torch.func.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkernels._second_derivative import once, refuse_compiled_transforms
from fedkernels.triple_lora import ops

_WAY_OUT = ' on this backend; compile without the transform, or pass backend="reference"'
_X, _WEIGHT, _BIAS, _BASE, _A, _T, _B = range(7)


def triple_lora(dtype, x, weight, bias, base, A, T, B, width, options) -> Tensor:
    """y of api.triple_lora_linear (weight given) or api.triple_lora_delta (base or nothing)."""
    # The ops read the leading dimensions as rows of one contiguous matrix.
    base = None if base is None else base.contiguous()
    x = x.contiguous()
    if not torch._C._are_functorch_transforms_active():
        kept = A.requires_grad or (weight is not None and weight.requires_grad)
        link = _link(x) if x.requires_grad and not kept else None
        return _TripleLora.apply(x, weight, bias, base, A, T, B, link, dtype, width, options)
    refuse_compiled_transforms("triple_lora", _WAY_OUT)
    arguments = (x, weight, bias, base, A, T, B, _link(x), dtype, width, options)
    return _TripleLoraFunctional.apply(*arguments)[0]


def _link(x: Tensor) -> Tensor:
    """An empty tensor that depends on x, saved where x itself is not.

    dT and dB are functions of x through h alone. Tied to the link, they raise when they are
    differentiated by x; without it, that derivative was silently 0.
    """
    return torch.slice_copy(x, -1, 0, 0)


def select_middle(middle, scores, rank, index, previous, straight_through):
    """(T, index) of api.select_middle."""
    if index is None:
        index = ops.select_index(scores.detach().contiguous(), rank, previous)
    through = scores if straight_through else None
    if not torch._C._are_functorch_transforms_active():
        return _GatherMiddle.apply(middle, through, index, rank), index
    refuse_compiled_transforms("select_middle", _WAY_OUT)
    return _GatherMiddleFunctional.apply(middle, through, index, rank), index


def _once(grads: tuple[Tensor | None, ...], *sources: Tensor | None) -> tuple[Tensor | None, ...]:
    return once(
        "fedkernels: the compiled kernels have no second derivative; "
        'pass backend="reference" to differentiate twice',
        grads,
        *sources,
    )


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _forward(x, weight, bias, base, A, T, B, dtype, width, options) -> tuple[Tensor, Tensor]:
    scale, residual, in_index, out_index, block, p, seed = options
    if x.dtype is not dtype or torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias, base = (_cast(t, dtype) for t in (x, weight, bias, base))
            return ops.triple_lora_forward(
                x, weight, bias, base, A, T, B, in_index, out_index, seed, block, width,
                scale, residual, p,
            )  # fmt: skip
    return ops.triple_lora_forward(
        x, weight, bias, base, A, T, B, in_index, out_index, seed, block, width, scale, residual, p
    )


def _kept(needs, x, weight, A, T, B, h, link) -> tuple[Tensor | None, ...]:
    """What backward reads, by which gradients are asked for; the casts are redone there."""
    factor_grads = needs[_T] or needs[_B]
    return (
        x if needs[_A] or needs[_WEIGHT] else None,
        weight,
        A,
        T,
        B,
        h if factor_grads else None,
        link,
    )


def _backward(needs, settings, grad, saved):
    x, weight, A, T, B, _, link = saved
    need = (
        needs[_X] * ops.NEED_X
        | needs[_A] * ops.NEED_A
        | needs[_T] * ops.NEED_T
        | needs[_B] * ops.NEED_B
        | needs[_WEIGHT] * ops.NEED_WEIGHT
        | needs[_BIAS] * ops.NEED_BIAS
    )
    if not torch.is_grad_enabled():
        return _first_derivative(needs, need, settings, grad, saved)
    # create_graph: the ops run below autograd, but the products that they call do not.
    with torch.no_grad():
        result = _first_derivative(needs, need, settings, grad, saved)
    return _once(result, grad, x, weight, A, T, B, link)


def _first_derivative(needs, need, settings, grad, saved) -> tuple[Tensor | None, ...]:
    dtypes, dtype, width, options = settings
    x, weight, A, T, B, h, _ = saved
    scale, residual, in_index, out_index, block, p, seed = options
    upstream = grad
    # Autocast casts grad nowhere; an FSDP policy may send another dtype than forward's.
    if grad.dtype is not dtype or torch.is_autocast_enabled(grad.device.type):
        with torch.autocast(grad.device.type, enabled=False):
            grad = _cast(grad, dtype).contiguous()
            grads = ops.triple_lora_backward(
                grad, _cast(x, dtype), h, _cast(weight, dtype), A, T, B, in_index, out_index,
                seed, block, width, scale, residual, p, need,
            )  # fmt: skip
    else:
        grads = ops.triple_lora_backward(
            grad.contiguous(), _cast(x, dtype), h, _cast(weight, dtype), A, T, B, in_index,
            out_index, seed, block, width, scale, residual, p, need,
        )  # fmt: skip
    dx, dA, dT, dB, dweight, dbias = grads
    outer = [dx, dweight, dbias, upstream]
    if dtypes is not None:
        outer = [t if to is None else _cast(t, to) for t, to in zip(outer, dtypes, strict=True)]
    grads = zip((*outer, dA, dT, dB), needs, strict=False)
    return (*(t if wanted else None for t, wanted in grads), None, None, None, None)


def _settings(x, weight, bias, base, dtype, options) -> tuple:
    same = x.dtype is dtype and not torch.is_autocast_enabled(x.device.type)
    given = None if same else tuple(None if t is None else t.dtype for t in (x, weight, bias, base))
    return given, dtype, x.shape[-1], options


class _TripleLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, base, A, T, B, link, dtype, width, options):
        y, h = _forward(x, weight, bias, base, A, T, B, dtype, width, options)
        ctx.save_for_backward(*_kept(ctx.needs_input_grad, x, weight, A, T, B, h, link))
        ctx.settings = _settings(x, weight, bias, base, dtype, options)
        return y

    @staticmethod
    def backward(ctx, grad):
        return _backward(ctx.needs_input_grad, ctx.settings, grad, ctx.saved_tensors)


class _TripleLoraFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, base, A, T, B, link, dtype, width, options):
        return _forward(x, weight, bias, base, A, T, B, dtype, width, options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, base, A, T, B, link, dtype, _, options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*_kept(ctx.needs_input_grad, x, weight, A, T, B, output[1], link))
        ctx.settings = _settings(x, weight, bias, base, dtype, options)

    @staticmethod
    def backward(ctx, grad, _):
        return _backward(ctx.needs_input_grad, ctx.settings, grad, ctx.saved_tensors)


def _scatter(ctx, grad: Tensor):
    middle, index = ctx.saved_tensors
    need_middle, need_scores = ctx.needs_input_grad[:2]
    dmiddle, dscores = ops.scatter_middle(
        grad.contiguous(), middle.contiguous() if need_scores else None, index, ctx.size
    )
    result = (
        dmiddle if need_middle else None,
        _cast(dscores, ctx.scores_dtype) if need_scores else None,
    )
    return _once(result, grad, middle) if torch.is_grad_enabled() else result


class _GatherMiddle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, middle, scores, index, rank):
        _keep_gather(ctx, middle, scores, index)
        return ops.gather_middle(middle.contiguous(), index, rank)

    @staticmethod
    def backward(ctx, grad):
        return (*_scatter(ctx, grad), None, None)


class _GatherMiddleFunctional(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(middle, scores, index, rank):
        return ops.gather_middle(middle.contiguous(), index, rank)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _keep_gather(ctx, *inputs[:3])

    @staticmethod
    def backward(ctx, grad):
        return (*_scatter(ctx, grad), None, None)


def _keep_gather(ctx, middle, scores, index) -> None:
    needs_scores = scores is not None and ctx.needs_input_grad[1]
    # As it came, not a copy in order: a copy made here is cut off from what middle depends on.
    ctx.save_for_backward(middle if needs_scores else None, index)
    ctx.size = middle.shape[-1]
    ctx.scores_dtype = None if scores is None else scores.dtype
