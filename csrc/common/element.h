// Storage types of tensors, and their conversion to the type that sums run in.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

namespace fedkernels {

enum class Element { f32, f64, bf16, f16 };

// 16-bit patterns with a type of their own, so that templates tell them apart.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline Element element_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Element::f64;
    case ScalarType::BFloat16:
      return Element::bf16;
    case ScalarType::Half:
      return Element::f16;
    default:
      return Element::f32;  // api.py lets no other type through
  }
}

// Calls f with a value of the storage type that `element` stands for.
template <typename F>
auto with_element(Element element, const F& f) {
  switch (element) {
    case Element::f64:
      return f(double{});
    case Element::bf16:
      return f(Bf16{});
    case Element::f16:
      return f(F16{});
    default:
      return f(float{});
  }
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(Bf16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }
inline float widen(F16 v) { return c10::detail::fp16_ieee_to_fp32_value(v.bits); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline void narrow(float v, float* out) { *out = v; }
inline void narrow(double v, double* out) { *out = v; }
inline void narrow(double v, float* out) { *out = static_cast<float>(v); }
inline void narrow(float v, Bf16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  out->bits = static_cast<uint16_t>((v != v ? 0x7FC00000u : rounded) >> 16);
}
inline void narrow(float v, F16* out) { out->bits = c10::detail::fp16_ieee_from_fp32_value(v); }

}  // namespace fedkernels
