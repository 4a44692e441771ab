"""`python triton_layouts.py`: the fragments of mma.sync as Triton lays them out, as JSON.

{"tf32_a": [[[row, column] for each value] for each lane], ...}. A process of its own: it needs
neither a GPU nor a driver, but Triton's compiler.
"""

from __future__ import annotations

import json

from triton._C.libtriton import gluon_ir, ir
from triton.experimental.gluon.language import DotOperandLayout, NVMMADistributedLayout

# Operand (None: the accumulator), bits of an element, shape of the matrix.
FRAGMENTS = {
    "tf32_a": (0, 32, [16, 8]),
    "tf32_b": (1, 32, [8, 8]),
    "bf16_a": (0, 16, [16, 16]),
    "bf16_b": (1, 16, [16, 8]),
    "mma_d": (None, 32, [16, 8]),
}


def places(operand: int | None, bits: int, shape: list[int]) -> list[list[list[int]]]:
    context = ir.context()
    ir.load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)
    layout = NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
    if operand is not None:
        layout = DotOperandLayout(operand_index=operand, parent=layout, k_width=32 // bits)
    linear = builder.to_linear_layout(layout._to_ir(builder), shape)

    def combine(index: int, bases: list[list[int]]) -> list[int]:
        place = [0, 0]
        for bit, base in enumerate(bases):
            if index >> bit & 1:
                place = [a ^ b for a, b in zip(place, base, strict=True)]
        return place

    values = 1 << len(linear.reg_bases)
    return [
        [
            [a ^ b for a, b in zip(combine(lane, linear.lane_bases), of_value, strict=True)]
            for of_value in (combine(i, linear.reg_bases) for i in range(values))
        ]
        for lane in range(32)
    ]


if __name__ == "__main__":
    print(json.dumps({name: places(*fragment) for name, fragment in FRAGMENTS.items()}))
