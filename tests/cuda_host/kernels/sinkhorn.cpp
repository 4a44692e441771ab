// Entry points of the Sinkhorn kernels: the launches that the CUDA ops make.
#include "transport/sinkhorn_launch.cuh"
#include "transport/sinkhorn_plan.cuh"

using namespace fedkernels;
using cuda_host::guarded;

// Strides say how many problems share an operand: 0, or its own extent.
FK_ENTRY(sinkhorn_scratch)(int64_t batch, int64_t n, int64_t m, int64_t* bytes) {
  return guarded([&] { *bytes = SinkhornScratch(batch, n, m).bytes; });
}

FK_ENTRY(sinkhorn_forward)(const float* cost, int64_t cost_stride, const float* a, int64_t a_stride,
                           const float* b, int64_t b_stride, const double* eps, int64_t eps_stride,
                           const int64_t* sizes, const float* g0, int64_t g0_stride, int64_t batch,
                           int64_t n, int64_t m, double rho_a, double rho_b, int64_t max_iter,
                           double tol, int64_t log, int64_t sor, float* value, float* linear,
                           float* f, float* g, float* u, float* v, float* r, float* c,
                           int32_t* n_iter, float* error, uint8_t* status, unsigned char* scratch) {
  return guarded([&] {
    SinkhornCall call{};
    call.cost = cost, call.a = a, call.b = b, call.eps = eps, call.sizes = sizes, call.g0 = g0;
    call.cost_stride = cost_stride, call.a_stride = a_stride, call.b_stride = b_stride;
    call.eps_stride = eps_stride, call.g0_stride = g0_stride;
    call.batch = batch, call.n = static_cast<int>(n), call.m = static_cast<int>(m);
    call.rho_a = rho_a, call.rho_b = rho_b;
    call.max_iter = static_cast<int>(max_iter), call.tol = static_cast<float>(tol);
    call.log = log != 0, call.sor = sor != 0;
    call.value = value, call.linear = linear, call.f = f, call.g = g, call.u = u, call.v = v;
    call.r = r, call.c = c, call.n_iter = n_iter, call.error = error, call.status = status;
    launch_sinkhorn(call, reinterpret_cast<std::byte*>(scratch), nullptr);
  });
}

static PlanCall plan_call(const float* cost, int64_t cost_stride, const double* eps,
                          int64_t eps_stride, const int64_t* sizes, const float* u, const float* v,
                          int64_t batch, int64_t n, int64_t m) {
  return {cost,        eps,        sizes, u, v, cost_stride, eps_stride, batch, static_cast<int>(n),
          static_cast<int>(m)};
}

FK_ENTRY(sinkhorn_plan)(const float* cost, int64_t cost_stride, const double* eps,
                        int64_t eps_stride, const int64_t* sizes, const float* u, const float* v,
                        const float* scale, int64_t batch, int64_t n, int64_t m, float* plan) {
  return guarded([&] {
    launch_plan(plan_call(cost, cost_stride, eps, eps_stride, sizes, u, v, batch, n, m), scale,
                plan, nullptr);
  });
}

FK_ENTRY(sinkhorn_apply)(const float* cost, int64_t cost_stride, const double* eps,
                         int64_t eps_stride, const int64_t* sizes, const float* u, const float* v,
                         const float* V, int64_t transpose, int64_t batch, int64_t n, int64_t m,
                         int64_t d, float* result) {
  return guarded([&] {
    launch_plan_product(plan_call(cost, cost_stride, eps, eps_stride, sizes, u, v, batch, n, m), V,
                        result, static_cast<int>(d), transpose != 0, nullptr);
  });
}
