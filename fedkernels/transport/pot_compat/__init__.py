"""POT's functions with POT's arguments, on our kernels: change the import and nothing else.

    from fedkernels.transport.pot_compat import solve_batch       # was: from ot.batch import ...

Signatures are those of POT 0.9.7 (0.9.6's `solver=` is taken for `method=`), numpy arrays or torch
tensors in and the same out. What our kernels do not compute (`method="proximal"`, `grad="autodiff"`
and `"last_step"`) runs in an installed POT; other arguments that would change nothing here raise.

Iterates are POT's: a call with tol=0 returns POT's plan. With tol > 0 every problem stops by
itself as soon as the L1 error of its rows is at most tol. POT stops all of them together when the
worst L2 error is below tol, looking at iterations 1, 11, 21, ...; the L2 error is never the larger
one, so its promise holds for each problem here. Totals of a and b have to agree, as everywhere in
`fedkernels.transport`; `OTResult.status` says which problem was not solved.
"""

from __future__ import annotations

from fedkernels.transport.pot_compat.batch import (
    OTResult,
    dist_batch,
    loss_linear_batch,
    loss_linear_samples_batch,
    solve_batch,
    solve_sample_batch,
)
from fedkernels.transport.pot_compat.single import emd2, sinkhorn

__all__ = [
    "OTResult",
    "dist_batch",
    "emd2",
    "loss_linear_batch",
    "loss_linear_samples_batch",
    "sinkhorn",
    "solve_batch",
    "solve_sample_batch",
]
