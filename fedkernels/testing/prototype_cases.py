"""The named cases of the prototype functions, as data.

`prototype_inputs` turns one into the arguments of a public function. Equal case, function and dtype
give equal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedkernels.testing.inputs import random_tensor

__all__ = ["PROTOTYPE_CASES", "PrototypeCase", "prototype_inputs"]


@dataclass(frozen=True, slots=True)
class PrototypeCase:
    """n points and k prototypes in d dimensions; the temperature lets logits span about 4.

    mask: "" (none), "shared" (K,) or "rows" (N, K). soft: soft labels. layout: of the points. k
    nearest are asked for by `prototype_assign` with ``nearest``.
    """

    name: str
    n: int
    k: int
    d: int
    metric: str = "sqeuclidean"
    mask: str = ""
    soft: bool = False
    weighted: bool = False
    prior: bool = False
    reduction: str = "mean"
    nearest: int = 1
    layout: str = "contiguous"


PROTOTYPE_CASES: tuple[PrototypeCase, ...] = (
    PrototypeCase("small", 40, 5, 7, prior=True, weighted=True),
    PrototypeCase("one-prototype", 33, 1, 8, metric="dot"),
    PrototypeCase("no-point", 0, 5, 4, reduction="sum"),
    PrototypeCase("euclidean", 130, 17, 33, metric="euclidean", mask="rows", nearest=3),
    PrototypeCase("cosine", 97, 33, 20, metric="cosine", mask="shared", soft=True),
    PrototypeCase("dot", 67, 9, 16, metric="dot", prior=True, reduction="none", nearest=9),
    PrototypeCase("many-prototypes", 48, 300, 12, soft=True, weighted=True, nearest=32),
    PrototypeCase("wide", 60, 10, 300, metric="cosine", reduction="sum", nearest=2),
    PrototypeCase("strided", 50, 20, 16, metric="euclidean", layout="strided", prior=True),
)


def prototype_inputs(
    case: PrototypeCase, function: str, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `fedkernels.<function>`: a prototype function, `class_mean` or `kmeans`.

    >>> sorted(prototype_inputs(PROTOTYPE_CASES[0], "prototype_distance"))
    ['metric', 'prototypes', 'x']
    """
    n, k, d = case.n, case.k, case.d
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = random_tensor((n, d), dtype=dtype, seed=seed, layout=case.layout)
    mu = random_tensor((k, d), dtype=wide, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    allowed = torch.rand((n, k), generator=generator) > 0.3
    allowed[:, 0] = True  # a row with something
    if case.mask != "rows":
        allowed = allowed[:1] if n and case.mask else torch.ones(1, k, dtype=torch.bool)
    label = torch.randint(0, k, (n,), generator=generator)
    hit = allowed.expand(n, k).gather(1, label[:, None])[:, 0]
    target = torch.where(hit, label, 0)  # costs infinity where it is masked
    if case.soft:
        soft = random_tensor((n, k), dtype=wide, seed=seed + 3).softmax(1)
        target = torch.where(allowed, soft, 0.0)
    if function == "class_mean":
        weight = random_tensor((n,), dtype=wide, seed=seed + 4).abs() if case.weighted else None
        return {"x": x, "labels": target, "n_classes": k, "weight": weight}
    if function == "kmeans":
        return {"x": x, "k": k, "init": mu.to(dtype), "max_iter": 3, "tol": 0.0}
    given: dict[str, Any] = {"x": x, "prototypes": mu, "metric": case.metric}
    if function == "prototype_distance":
        return given
    given["mask"] = (allowed[0] if case.mask == "shared" else allowed) if case.mask else None
    if function == "prototype_assign":
        return {**given, "k": case.nearest}
    width = d**0.5
    spans = {"sqeuclidean": 6 * width, "euclidean": 3.0, "cosine": 4 / width, "dot": 6 * width}
    given["temperature"] = spans[case.metric] / 4
    given["log_prior"] = random_tensor((k,), dtype=wide, seed=seed + 5) if case.prior else None
    if function == "prototype_softmax":
        return given
    weight = random_tensor((k,), dtype=wide, seed=seed + 6).abs() if case.weighted else None
    return {**given, "target": target, "class_weight": weight, "reduction": case.reduction}
