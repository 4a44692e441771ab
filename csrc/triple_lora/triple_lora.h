// Triple-matrix LoRA on the CPU: what the vector kernels (kernels.h) and the ops
// (triple_lora_cpu.cpp) agree on.
//
//   forward    h = drop(x) A^T      y  = [x h] [W Q]^T + bias         Q = s B (T + I)
//   backward   dh = g Q             dx = [g dh] [W; A]                 (the A part times the mask)
//              dQ = g^T h           dA^T = drop(x)^T dh
//
// T below is the type of the sums: float, or double for double tensors. `rank` is r rounded up to
// whole panels; thin matrices hold zeros there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/element.h"

namespace fedkernels {

// Rows of a block share every panel they pass. A block of short rows stays in the second cache
// beside a panel; longer rows do not fit there anyway, and a tall block passes the panels less often
// (measured on K = 1024 and 2048: OPTLOG.md). Around that height, whole tiles (6 or 12 rows) and four
// shares of equal size: with 11 blocks one of two threads would have a fifth more to do. The height
// depends on the shape alone, never on the threads.
constexpr int64_t most_rows = 240;
inline int64_t rows_of_block(int64_t N, int64_t K) {
  const int64_t target = K <= 1280 ? 48 : 168;
  int64_t best = target;
  double least = 1e9;
  for (int64_t rows = target / 24 * 12; rows <= target * 17 / 12; rows += 12) {
    const int64_t blocks = (N + rows - 1) / rows, share = (blocks + 3) / 4 * rows;
    // A little dearer the further from the target, so that ties go to it.
    const double cost = static_cast<double>(std::min(share, N)) +
                        1e-4 * N * (rows > target ? rows - target : target - rows) / target;
    if (cost < least) least = cost, best = rows;
  }
  return best;
}
constexpr int64_t block_k = 1024;

struct Dropout {
  bool on = false;
  uint64_t seed = 0;
  uint32_t threshold = 0;  // kept if and only if slice >= threshold
  double factor = 1;       // of what is kept
};

template <typename T>
struct Forward {
  int64_t D_in, D_out, r, rank;
  int64_t block_rows;
  Element element;           // of x, base and y
  const void* x;             // (N, D_in)
  const T* panels;           // W^T (D_in, D_out) in panels, or null
  const T* bias;             // (D_out padded), or null
  const void* base;          // (N, D_out) added to y, y itself where it holds x W^T, or null
  const T* A;                // A^T (active D_in, rank) in panels
  const T* Q;                // Q^T (r, D_out) in panels
  const uint8_t* Q_active;   // for each panel of D_out, whether Q has a row there
  const int64_t* in_map;     // active columns of x, or null for all
  int64_t in_active;
  Dropout dropout;
  void* y;                   // (N, D_out)
  T* h;                      // (N, r)
};

template <typename T>
struct Backward {
  int64_t D_in, D_out, r, rank;
  int64_t block_rows;
  Element element;           // of g, x and dx
  const void* g;             // (N, D_out)
  const void* x;             // (N, D_in), or null if dA is not asked for
  const T* h;                // (N, r), or null if dQ is not asked for
  const T* panels;           // W (D_out, D_in) in panels, or null
  bool accumulate;           // dx holds g W
  const T* A;                // A (r, D_in) in panels
  const uint8_t* A_active;   // for each panel of D_in, whether A has a column there
  const T* Q;                // Q (active D_out, rank) in panels
  const int64_t* in_map;
  int64_t in_active;
  const int64_t* out_map;
  int64_t out_active;
  Dropout dropout;
  void* dx;                  // (N, D_in), or null
};

// Sums over rows that one stripe of rows adds up; null where not asked for.
template <typename T>
struct Sums {
  T* dA;     // dA^T (active D_in, rank)
  T* dQ;     // (active D_out, rank)
  T* dbias;  // (D_out)
};

// The exported functions of one instruction set. Rows [begin, end), panels [first, last).
template <typename T>
struct Kernels {
  int64_t columns;  // of a panel
  void (*pack)(Element element, const void* in, int64_t k_stride, int64_t n_stride, int64_t K,
               int64_t N, int64_t first, int64_t last, T* out);
  void (*forward)(const Forward<T>&, int64_t begin, int64_t end, int64_t first, int64_t last);
  void (*backward)(const Backward<T>&, const Sums<T>&, int64_t begin, int64_t end, int64_t first,
                   int64_t last);
  // C (rows, N) (+)= A (rows, K) B (K, N), N whole panels, row-major, A with two strides.
  void (*multiply)(int64_t rows, int64_t K, int64_t N, const T* a, int64_t a_row, int64_t a_k,
                   const T* b, T* c, bool zero);
};

// The kernels of the instruction set that runs (kernels_cpu.cpp).
template <typename T>
const Kernels<T>& kernels_here();

}  // namespace fedkernels
