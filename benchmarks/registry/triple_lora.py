"""The entries of `triple_lora`."""

from __future__ import annotations

import torch

from fedkernels import select_middle, triple_lora_linear
from fedkernels.testing.check import Verdict, linear_within_budget, selection_is_exact

from ..peers import Contender
from ..peers import triple_lora as p
from ..problems import LoraProblem, SelectProblem, lora_problem, select_problem
from .entry import FORWARD, FORWARD_BACKWARD, GATE_TEST, SAVED, Case, Entry, Goal, Results, Sizes

__all__ = ["ENTRIES"]


def _lora_cases(*sizes: tuple[int, int, int]) -> tuple[Case, ...]:
    return tuple(Case(f"N{n} D{d} r{r}", {"N": n, "D": d, "r": r}) for n, d, r in sizes)


def _ours_lora(problem: LoraProblem, backend: str) -> Contender:
    x, weight, go, scale = problem.x, problem.weight, problem.grad_output, problem.scale
    A, T, B = problem.factors
    inputs = [tensor for tensor in (x, A, T, B) if tensor.requires_grad]
    names = ("dx", "dA", "dT", "dB") if A.requires_grad else ("dx", "dT", "dB")

    def forward() -> torch.Tensor:
        return triple_lora_linear(x, weight, A, T, B, scale=scale, backend=backend)

    def step() -> tuple[torch.Tensor, ...]:
        y = triple_lora_linear(x, weight, A, T, B, scale=scale, backend=backend)
        return (y, *torch.autograd.grad(y, inputs, go))

    parameters = (weight, A, T, B)
    return Contender(forward, step, gradients=names, parameters=parameters)


def _lora_gate(problem: LoraProblem, backend: str) -> Verdict:
    tensors = {name: getattr(problem, name) for name in ("x", "weight", "A", "T", "B")}
    return linear_within_budget(
        tensors, {"scale": problem.scale}, problem.grad_output, backend=backend
    )


def _lora_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    n, d, r = sizes["N"], sizes["D"], sizes["r"]
    factors = 2 * d * r + r * r
    forward = 2 * n * d + d * d + factors  # read x, W, A, T, B; write y
    if direction == FORWARD:
        return forward * itemsize
    # read dy, x, W and the factors; write dx and the factors' gradients
    return (forward + 3 * n * d + d * d + 2 * factors) * itemsize


def _lora_flops(sizes: Sizes, direction: str) -> float:
    n, d, r = sizes["N"], sizes["D"], sizes["r"]
    large, thin, fold = 2 * n * d * d, 2 * n * d * r, 2 * d * r * r
    forward = large + 2 * thin + fold  # y, h and the delta, Q
    return forward if direction == FORWARD else 2 * large + 6 * thin + 3 * fold


def _lora_same(problem: LoraProblem, mine: Results, theirs: Results) -> str | None:
    """Outputs and the gradients that both have (not dB: a plain LoRA layer's is that of Q)."""
    # Peers round in between, and hold a rounded B (T + I): this finds a wrong sum, not an ulp.
    limit = 1e-3 if problem.x.dtype == torch.float32 else 3e-2
    for name in mine.keys() & theirs.keys() - {"dB"}:
        a, b = mine[name].double(), theirs[name].double()
        error = float((a - b).detach().norm() / b.detach().norm())
        if not error <= limit:  # a NaN differs
            return f"{name} differs by {error:.1e} (limit {limit:.0e})"
    return None


_SIZES = _lora_cases(
    (512, 1024, 16), (2048, 1024, 16), (1024, 2048, 64), (2048, 2048, 16), (1024, 768, 8)
)
_OVERHEAD = ("N2048 D1024 r16",)
_LORA = {
    "family": "triple_lora",
    "op": "triple_lora_linear",
    "ours": _ours_lora,
    "gate": _lora_gate,
    "gate_test": GATE_TEST,
    "bytes_moved": _lora_bytes,
    "flops": _lora_flops,
    "same": _lora_same,
}


def _frozen_a(sizes: Sizes, dtype: torch.dtype, device: str) -> LoraProblem:
    return lora_problem(sizes, dtype, device=device, train_A=False)


def _float32_adapters(sizes: Sizes, dtype: torch.dtype, device: str) -> LoraProblem:
    return lora_problem(sizes, dtype, device=device, adapter_dtype=torch.float32)


def plain(sizes: Sizes, dtype: torch.dtype, device: str) -> LoraProblem:
    return lora_problem(sizes, dtype, device=device)


# --- select_middle -----------------------------------------------------------------------------


def _ours_select(problem: SelectProblem, backend: str) -> Contender:
    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        return select_middle(problem.middle, problem.scores, problem.rank, backend=backend)

    return Contender(forward, outputs=("T", "index"))


def _select_gate(problem: SelectProblem, backend: str) -> Verdict:
    return selection_is_exact(problem.middle, problem.scores, problem.rank, backend=backend)


def _select_bytes(sizes: Sizes, direction: str, itemsize: int) -> float:
    layers, chosen = sizes["L"], sizes["r"] ** 2
    # read the scores and the chosen entries; write T and the int64 index
    return layers * (sizes["R"] ** 2 * itemsize + chosen * (2 * itemsize + 8))


def _select_same(problem: SelectProblem, mine: Results, theirs: Results) -> str | None:
    """The same scores chosen. Among equal scores a peer may take another index."""
    scores = problem.scores.flatten(1)
    a, b = (scores.gather(1, results["index"]).sort(1).values for results in (mine, theirs))
    return None if torch.equal(a, b) else "chose other scores"


def _select_cases(layers: int, middle: int, *ranks: int) -> tuple[Case, ...]:
    return tuple(
        Case(f"L{layers} R{middle} r{rank}", {"L": layers, "R": middle, "r": rank})
        for rank in ranks
    )


_MODEL = _select_cases(196, 128, 4, 8, 16, 64, 128)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="triple_lora_linear",
        cases=_SIZES,
        quick=_lora_cases((512, 512, 16), (512, 1024, 16)),
        directions=(FORWARD, FORWARD_BACKWARD),
        dtypes=("float32", "bfloat16"),
        peers=(p.PEFT, p.ADDMM, p.THREE_PRODUCTS, p.BARE),
        goals=(
            Goal(p.PEFT, 1.10, mean=True),
            Goal(p.PEFT, 1.0),
            Goal(p.ADDMM, 1.0),
            Goal(p.BARE, 1 / 1.12, cases=_OVERHEAD, dtypes=("float32",)),
            Goal(p.BARE, 1 / 1.20, cases=_OVERHEAD, dtypes=("bfloat16",)),
        ),
        problem=plain,
        **_LORA,
    ),
    Entry(
        name="triple_lora_linear, one small call",
        cases=_lora_cases((1, 16, 4)),
        quick=_lora_cases((1, 16, 4)),
        directions=(FORWARD, FORWARD_BACKWARD),
        dtypes=("float32", "bfloat16"),
        peers=(p.PEFT, p.ADDMM, p.THREE_PRODUCTS, p.BARE),
        goals=(Goal(p.PEFT, 1.0, direction=FORWARD), Goal(p.PEFT, 1.0)),
        problem=plain,
        **_LORA,
    ),
    Entry(
        # What PEFT's defaults make of a half-precision base: ours holds float32 adapters here too.
        name="triple_lora_linear, float32 adapters",
        cases=_SIZES,
        quick=(),
        directions=(FORWARD, FORWARD_BACKWARD),
        dtypes=("bfloat16",),
        peers=(p.PEFT_DEFAULT, p.PEFT_AUTOCAST),
        goals=(Goal(p.PEFT_DEFAULT, 1.4), Goal(p.PEFT_AUTOCAST, 1.1)),
        problem=_float32_adapters,
        **_LORA,
    ),
    Entry(
        # Gate: exactly N * r elements are kept for backward, parameters not counted.
        name="triple_lora_linear, A frozen",
        cases=_SIZES,
        quick=_lora_cases((512, 512, 16)),
        directions=(SAVED,),
        dtypes=("float32", "bfloat16"),
        peers=(p.PEFT, p.ADDMM, p.THREE_PRODUCTS),
        goals=(),
        problem=_frozen_a,
        **_LORA,
    ),
    Entry(
        name="select_middle",
        family="triple_lora",
        op="select_middle",
        cases=_MODEL,
        quick=_select_cases(28, 128, 8, 16, 64),
        directions=(FORWARD,),
        dtypes=("float32",),
        peers=(p.TOPK_LOOP, p.TOPK_BATCHED, p.KTH_VALUE),
        goals=(
            Goal(
                p.TOPK_LOOP,
                5.0,
                direction=FORWARD,
                cases=tuple(case.name for case in _MODEL if case.sizes["r"] >= 16),
            ),
            Goal(
                p.TOPK_LOOP,
                1.0,
                direction=FORWARD,
                cases=tuple(case.name for case in _MODEL if case.sizes["r"] < 16),
            ),
        ),
        problem=lambda sizes, dtype, device: select_problem(sizes, dtype, device=device),
        ours=_ours_select,
        gate=_select_gate,
        gate_test=GATE_TEST,
        bytes_moved=_select_bytes,
        flops=lambda sizes, direction: 0.0,
        same=_select_same,
    ),
)
