// Adaptive over-relaxation of Sinkhorn's steps (solver "sor"; balanced problems): host and device.
//
// A plain step multiplies the scaling of a row by rho = a_i / r_i, r_i the row's mass before the
// step; a relaxed step multiplies it by factor(rho, omega), about rho^omega. omega follows from the
// rate at which the marginal error falls: for successive over-relaxation with factor omega of an
// iteration whose plain rate is lambda, the observed rate x satisfies (x + omega - 1)^2 = lambda x
// omega^2, and the best factor is 2 / (1 + sqrt(1 - lambda)) (Thibault et al. 2017, arXiv
// 1711.01851; Lehmann et al. 2021, arXiv 2012.12562).
//
// One observation an iteration, after iteration k = 1, 2, ...: the error of the pair (u, v), known
// in the row pass of iteration k + 1. That pass is relaxed with the omega from before; what it
// observed holds from its column step on. omega changes after iterations 4, 8, 16 and every 16th,
// never because of a neighbour. Safeguard: where the error has grown by 5 % since the last change,
// or its rate is not below 1, the problem goes on without relaxation until the next change.
//
// Stop: an error below the tolerance ends a problem only if the last column step was plain (the
// columns are exact); otherwise the next column step is plain and the error is measured again. The
// column step of iteration max_iter is always plain.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FEDKERNELS_HOST_DEVICE __host__ __device__
#else
#define FEDKERNELS_HOST_DEVICE
#endif

namespace fedkernels {

// Whether E is rebuilt, and omega chosen anew, after iteration k: 2, 4, 8, 16 and every 16th.
FEDKERNELS_HOST_DEVICE inline bool is_fold(int64_t k) {
  return k % 16 == 0 || k == 2 || k == 4 || k == 8;
}

FEDKERNELS_HOST_DEVICE inline int64_t next_fold(int64_t k) {
  return k < 2 ? 2 : k < 4 ? 4 : k < 8 ? 8 : (k / 16 + 1) * 16;
}

template <typename T>
struct Relaxation {
  T omega = 1;
  T one_ago = 0, two_ago = 0;  // errors after iterations k - 1 and k - 2
  T marked = -1;               // error at the last change; below 0: none yet

  FEDKERNELS_HOST_DEVICE void observe(int64_t k, T error) {
    if (k >= 4 && is_fold(k)) {
      const bool grew = marked >= 0 && !(error <= T(1.05) * marked);
      const T rate = std::sqrt(error / two_ago);
      if (grew || !(rate < 1)) {
        omega = 1;
      } else {
        const T x = rate > T(1e-6) ? rate : T(1e-6), shifted = x + omega - 1;
        const T lambda = shifted * shifted / (x * omega * omega);
        const T capped = lambda < T(0.9999) ? lambda : T(0.9999);
        omega = 2 / (1 + std::sqrt(1 - capped));
      }
      marked = error;
    }
    two_ago = one_ago;
    one_ago = error;
  }
};

// rho^omega to second order around 1, exactly rho for omega = 1 up to rounding; far from 1 the step
// is plain. Fixed points and positivity are those of the plain step.
template <typename T>
FEDKERNELS_HOST_DEVICE inline T relaxed_factor(T rho, T omega) {
  const T x = rho - 1;
  return rho > T(0.5) && rho < T(2) ? (2 + (1 + omega) * x) / (2 + (1 - omega) * x) : rho;
}

}  // namespace fedkernels
