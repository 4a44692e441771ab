// Entry points of the kernels of prototypes: the launches that the CUDA ops make. Scratch is NaN
// before a launch, and each piece an allocation of its own.
#include "prototype/class_sum.cuh"
#include "prototype/launch.cuh"
#include "scratch.h"

using namespace fedkernels;
using cuda_host::guarded;

namespace {

// x, its storage type, prototypes and mask: what every call starts with.
struct Points {
  const void* x;
  int64_t kind;
  const float* mu;
  const uint8_t* mask;
  int64_t mask_stride, N, K, D, metric;
};

int64_t stripe_scratch = kStripeScratch;

// f(prototypes, take): a launch, with scratch that it may take.
template <typename F>
const char* launched(const Points& p, const F& f) {
  return guarded([&] {
    Scratch scratch;
    const auto take = [&](int64_t bytes) { return scratch.take(bytes); };
    Prototypes points =
        prepare_prototypes(p.x, static_cast<int>(p.kind), p.mu, p.mask, p.mask_stride, p.N, p.K,
                           p.D, static_cast<int>(p.metric), take, nullptr);
    points.stripe_scratch = stripe_scratch;
    f(points, take);
  });
}

}  // namespace

// From now on, so that a small problem takes the way of a large one; 0: what it was.
FK_ENTRY(prototype_stripe_scratch)(int64_t bytes) {
  stripe_scratch = bytes == 0 ? kStripeScratch : bytes;
  return nullptr;
}

// narrow(x) as 16-bit patterns, and what they are read as.
FK_ENTRY(storage)(const float* x, int64_t kind, int64_t count, uint16_t* narrowed, float* read) {
  return guarded([&] {
    for (int64_t i = 0; i < count; ++i) {
      store_as(narrowed, static_cast<int>(kind), i, x[i]);
      read[i] = stored(narrowed, static_cast<int>(kind), 1)[i];
    }
  });
}

FK_ENTRY(prototype_distance)(const void* x, int64_t kind, const float* mu, int64_t N, int64_t K,
                             int64_t D, int64_t metric, float* distance) {
  const Points given{x, kind, mu, nullptr, 0, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto&) {
    launch_prototype_distance(points, distance, nullptr);
  });
}

FK_ENTRY(prototype_distance_backward)(const void* x, int64_t kind, const float* mu,
                                      const float* distance, const float* grad, int64_t N,
                                      int64_t K, int64_t D, int64_t metric, void* dx, float* dmu) {
  const Points given{x, kind, mu, nullptr, 0, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto& take) {
    launch_prototype_distance_gradient(points, distance, grad, {dx, dmu, nullptr}, take, nullptr);
  });
}

FK_ENTRY(prototype_assign)(const void* x, int64_t kind, const float* mu, const uint8_t* mask,
                           int64_t mask_stride, int64_t N, int64_t K, int64_t D, int64_t metric,
                           int64_t k, float* distance, int64_t* index) {
  const Points given{x, kind, mu, mask, mask_stride, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto&) {
    launch_prototype_assign(points, static_cast<int>(k), distance, index, nullptr);
  });
}

FK_ENTRY(prototype_softmax)(const void* x, int64_t kind, const float* mu, const float* log_prior,
                            const uint8_t* mask, int64_t mask_stride, int64_t N, int64_t K,
                            int64_t D, int64_t metric, double temperature, float* prob, float* lse,
                            float* mass) {
  const Points given{x, kind, mu, mask, mask_stride, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto& take) {
    launch_prototype_softmax(points, {log_prior, static_cast<float>(temperature)}, prob, lse, mass,
                             take, nullptr);
  });
}

FK_ENTRY(prototype_softmax_backward)(const void* x, int64_t kind, const float* mu,
                                     const float* log_prior, const uint8_t* mask,
                                     int64_t mask_stride, const float* lse, const float* g_prob,
                                     const float* g_lse, const float* g_mass, int64_t N, int64_t K,
                                     int64_t D, int64_t metric, double temperature, void* dx,
                                     float* dmu, float* dlog_prior) {
  const Points given{x, kind, mu, mask, mask_stride, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto& take) {
    launch_prototype_softmax_gradient(points, {log_prior, static_cast<float>(temperature)},
                                      {lse, g_prob, g_lse, g_mass}, {dx, dmu, dlog_prior}, take,
                                      nullptr);
  });
}

FK_ENTRY(prototype_cross_entropy)(const void* x, int64_t kind, const float* mu,
                                  const int64_t* label, const float* soft, const float* log_prior,
                                  const uint8_t* mask, int64_t mask_stride,
                                  const float* class_weight, const float* row_weight, int64_t N,
                                  int64_t K, int64_t D, int64_t metric, double temperature,
                                  int64_t ignore_index, int64_t reduction, float* loss, void* dx,
                                  float* dmu, float* dlog_prior, int64_t* bad) {
  const Points given{x, kind, mu, mask, mask_stride, N, K, D, metric};
  return launched(given, [&](const Prototypes& points, const auto& take) {
    launch_prototype_cross_entropy(
        points, {log_prior, static_cast<float>(temperature)},
        {label, soft, class_weight, row_weight, ignore_index, static_cast<int>(reduction)}, loss,
        bad, {dx, dmu, dlog_prior}, take, nullptr);
  });
}

FK_ENTRY(class_sum_stripes)(int64_t N, int64_t K, int64_t D, int64_t* result) {
  return guarded([&] { *result = class_sum_stripes(N, K, D); });
}

// count: of labels or of shares.
FK_ENTRY(class_sum)(const void* x, int64_t kind, const int64_t* label, const float* share,
                    const float* weight, int64_t N, int64_t K, int64_t D, float* sum, float* total,
                    int64_t* count_labels, float* count_shares, int64_t* bad) {
  return guarded([&] {
    Scratch scratch;
    ClassSum call{};
    call.x = stored(x, static_cast<int>(kind), D);
    call.label = label, call.share = share, call.weight = weight;
    call.N = N, call.K = static_cast<int>(K), call.D = static_cast<int>(D);
    launch_class_sum(
        call, sum, total, count_labels, count_shares, bad,
        [&](int64_t bytes) { return scratch.take(bytes); }, nullptr);
  });
}
