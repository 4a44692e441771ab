"""Frozen bases for the adapters: the leading singular vectors of each slot's own weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from python_api.errors import InputError

if TYPE_CHECKING:
    from python_api.models.adapted import AdaptedModel

__all__ = ["orthogonal", "set_basis_svd", "svd_basis"]


def svd_basis(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of ``weight (D_out, D_in)``: ``A = V_r^T (r, D_in)`` and
    ``B = U_r (D_out, r)``, float32.

    The sign of each pair is fixed (the largest entry of each row of A is positive), so that parties
    with equal weights get equal bases.

    Example:
        >>> A, B = svd_basis(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> A
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if rank > min(weight.shape):
        raise InputError(
            f"rank: {rank} is above the smaller side of a weight {tuple(weight.shape)}; "
            'basis = "svd" needs rank <= both sides'
        )
    U, _, Vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    U, Vh = U[:, :rank], Vh[:rank]
    sign = Vh.gather(1, Vh.abs().argmax(1, keepdim=True)).sign()
    sign = torch.where(sign == 0, 1.0, sign)
    return (Vh * sign).float().contiguous(), (U * sign.t()).float().contiguous()


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix ``(size, size)``, uniform (Haar), float64."""
    Q, R = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


@torch.no_grad()
def set_basis_svd(model: AdaptedModel, *, rotated: int | None = None) -> None:
    """Freeze A and B of every slot to ``svd_basis`` of its weight, scale 1, no identity beside T.

    Args:
        model: its ``set_middle`` is left at T = 0, so that it computes what the base computes.
        rotated: a private seed: every A and B is turned by an orthogonal ``(r, r)`` matrix of its
            own (the control that keeps each subspace and takes away the common coordinates).

    Raises:
        InputError: the rank is above a side of a weight.
    """
    turn = None if rotated is None else torch.Generator().manual_seed(rotated)
    for l in range(model.n_layers):
        for slot in model.slots:
            A, B = svd_basis(model.slot_weight(l, slot).cpu(), model.rank)
            if turn is not None:
                A = (orthogonal(model.rank, turn) @ A.double()).float()
                B = (B.double() @ orthogonal(model.rank, turn).t()).float()
            model.A[l][slot].copy_(A)
            model.B[l][slot].copy_(B)
            model.A[l][slot].requires_grad_(False)
            model.B[l][slot].requires_grad_(False)
    model.set_scale(1.0)
    shape = (model.n_layers, len(model.slots), model.rank, model.rank)
    device = next(model.parameters()).device
    model.set_middle(torch.zeros(shape, device=device), residual=False)
