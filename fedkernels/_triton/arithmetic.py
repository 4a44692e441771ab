"""Products, rounding and logarithms of the kernels."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "dot_", "is_finite", "log2_", "narrow"]

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot_(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, summed in float32. PRECISION: "tf32x3" or "ieee" for float32 operands."""
    if INTERPRETED:
        # The interpreter multiplies bfloat16 as raw integers and knows no split products: widened,
        # the products of two bfloat16 are exact in float32.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to `dtype`, rounded to nearest even."""
    if INTERPRETED:
        # The interpreter cuts bfloat16 off.
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            bits = bits + 0x7FFF + ((bits >> 16) & 1)
            x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def log2_(x):
    """log2 to 1.5 units in the last place of float32; the hardware's errs by 2^-22 near 1.

    x = 2^e w with w in [sqrt(1/2), sqrt(2)); log2 w = 2/ln 2 (z + z^3/3 + ...), z = (w-1)/(w+1).
    """
    small = x < 1.1754944e-38
    bits = (x * tl.where(small, 16777216.0, 1.0)).to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    w = (bits - (e << 23)).to(tl.float32, bitcast=True)
    z = (w - 1.0) / (w + 1.0)
    y = z * z
    tail = y * (0.9617966939 + y * (0.5770780164 + y * (0.4121985831 + y * 0.3205988980)))
    log_w = tl.fma(z, 2.885390082, z * tail)
    value = e.to(tl.float32) - tl.where(small, 24.0, 0.0) + log_w
    value = tl.where(x == 0.0, float("-inf"), value)
    value = tl.where(x == float("inf"), x, value)
    return tl.where((x == x) & (x >= 0.0), value, float("nan"))


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")
