"""Triple-matrix LoRA: y = x W^T + bias + s * dropout(x) A^T (T + I)^T B^T (H2Tune's layer)."""

from __future__ import annotations

from fedkernels.triple_lora.api import (
    fold_middle,
    select_middle,
    triple_lora_delta,
    triple_lora_linear,
)
from fedkernels.triple_lora.layer import TripleLoraLinear

__all__ = [
    "TripleLoraLinear",
    "fold_middle",
    "select_middle",
    "triple_lora_delta",
    "triple_lora_linear",
]
