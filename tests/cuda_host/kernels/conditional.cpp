// Entry points of the kernels of conditional transport: the launches that the CUDA ops make.
#include "transport/conditional_launch.cuh"

using namespace fedkernels;
using cuda_host::guarded;

FK_ENTRY(conditional_scratch)(int64_t B, int64_t N, int64_t M, int64_t D, int64_t cost,
                              int64_t backward, int64_t* result) {
  return guarded([&] {
    const ConditionalScratch layout(B, N, M, D, static_cast<int>(cost), backward != 0);
    result[0] = layout.bytes, result[1] = layout.row_parts, result[2] = layout.column_parts;
    result[3] = layout.slots;
  });
}

FK_ENTRY(conditional_forward)(const float* x, const float* y, const float* p, const float* q,
                              int64_t B, int64_t N, int64_t M, int64_t D, int64_t cost,
                              int64_t logits, double temperature, float* row_cost, float* col_cost,
                              float* row_lse, float* col_lse, unsigned char* scratch) {
  return guarded([&] {
    const ConditionalMode mode{static_cast<int>(cost), static_cast<int>(logits), temperature};
    const ConditionalOperands rows{x, p, nullptr, nullptr, nullptr, nullptr, N};
    const ConditionalOperands columns{y, q, nullptr, nullptr, nullptr, nullptr, M};
    launch_conditional_forward(rows, columns, B, D, mode, row_cost, col_cost, row_lse, col_lse,
                               reinterpret_cast<std::byte*>(scratch), nullptr);
  });
}

FK_ENTRY(conditional_backward)(const float* x, const float* y, const float* p, const float* q,
                               const float* row_cost, const float* col_cost, const float* row_lse,
                               const float* col_lse, const float* g_row_cost,
                               const float* g_col_cost, const float* g_row_lse,
                               const float* g_col_lse, int64_t B, int64_t N, int64_t M, int64_t D,
                               int64_t cost, int64_t logits, double temperature, float* dx,
                               float* dy, float* dp, float* dq, unsigned char* scratch) {
  return guarded([&] {
    const ConditionalMode mode{static_cast<int>(cost), static_cast<int>(logits), temperature};
    const ConditionalOperands rows{x, p, row_lse, row_cost, g_row_cost, g_row_lse, N};
    const ConditionalOperands columns{y, q, col_lse, col_cost, g_col_cost, g_col_lse, M};
    launch_conditional_backward(rows, columns, B, D, mode, dx, dy, dp, dq,
                                reinterpret_cast<std::byte*>(scratch), nullptr);
  });
}
