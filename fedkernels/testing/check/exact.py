"""Triple-matrix LoRA and its gradients in long double: the oracle of the float64 kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkernels.testing.budget import long_double
from fedkernels.triple_lora.reference import block_columns, dropout_factor

__all__ = ["long_double_results"]


def long_double_results(
    tensors: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    grad_output: Tensor,
    *,
    seed: Tensor,
) -> dict[str, np.ndarray]:
    """y and the gradient to every tensor, by their formulas, with numpy and no autograd.

    tensors: x, A, T, B and maybe weight, bias, base. seed: the dropout seed, read if the options
    ask for dropout. With M = T + I, Q = s B M and u = dropout(x):

        y  = x W^T + bias + base + u A^T Q^T     dh = g Q          dQ = g^T (u A^T)
        du = dh A                                dA = dh^T u       dT = s B^T dQ     dB = s dQ M^T
        dx = g W + dropout(du)                   dW = g^T x        dbias = sum g     dbase = g
    """
    values = {key: long_double(t) for key, t in tensors.items() if t is not None}
    scale, block = options.get("scale", 1.0), options.get("block", 64)
    lead = values["x"].shape[:-1]
    x = values["x"].reshape(-1, values["x"].shape[-1])
    g = long_double(grad_output).reshape(len(x), grad_output.shape[-1])
    A, B = values["A"], values["B"]
    identity = np.eye(len(A), dtype=np.longdouble)
    middle = identity
    if "T" in values:
        middle = values["T"] + identity if options.get("residual", True) else values["T"]

    factor: Any = np.longdouble(1)
    if options.get("training", False) and options.get("dropout_p", 0.0) > 0:
        factor = long_double(dropout_factor(seed, *x.shape, options["dropout_p"]))
    columns = _active(options.get("in_index"), block, x.shape[1])
    rows = _active(options.get("out_index"), block, g.shape[1])

    u = (x * factor)[:, columns]
    Q = scale * (B @ middle)
    h = u @ A.T
    y = np.zeros_like(g)
    y[:, rows] = h @ Q.T
    dh, dQ = g[:, rows] @ Q, g[:, rows].T @ h
    dx = np.zeros_like(x)
    dx[:, columns] = dh @ A
    dx = dx * factor
    if "weight" in values:
        y += x @ values["weight"].T
        dx += g @ values["weight"]
    for name in ("bias", "base"):
        if name in values:
            y += values[name].reshape(-1, g.shape[1])
    return {
        "y": y.reshape(*lead, g.shape[1]),
        "dx": dx.reshape(values["x"].shape),
        "dA": dh.T @ u,
        "dT": scale * (B.T @ dQ),
        "dB": scale * (dQ @ middle.T),
        "dweight": g.T @ x,
        "dbias": g.sum(0),
        "dbase": g.reshape(*lead, g.shape[1]),
    }


def _active(index: Tensor | None, block: int, size: int) -> np.ndarray:
    if index is None:
        return np.arange(size)
    return block_columns(index.to(torch.int64).cpu(), block, size).numpy()
