// CPU op class_sum: chooses the plan, cuts rows into stripes or runs, and spreads these over
// torch's threads. Mathematics and plans: class_sum.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "common/element.h"
#include "common/scratch.h"
#include "prototype/class_sum.h"

namespace fedkernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Where the results go; count is of hard labels, shares of soft ones.
template <typename T>
struct Results {
  T* sum;
  T* total;
  int64_t* count;
  T* shares;
};

// The first rows whose label, or weight, is bad; N: none.
struct FirstBad {
  int64_t label, weight;
};

template <typename T>
FirstBad first_bad(const int64_t* labels, const T* weight, int64_t K, int64_t begin, int64_t end,
                   int64_t none) {
  FirstBad found{none, none};
  bool label = false, mass = false;
  for (int64_t i = begin; labels && i < end; ++i) {
    label |= static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(K);
  }
  for (int64_t i = begin; weight && i < end; ++i) mass |= !(weight[i] >= 0);
  for (int64_t i = end; label && i-- > begin;) {
    if (static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(K)) found.label = i;
  }
  for (int64_t i = end; mass && i-- > begin;) {
    if (!(weight[i] >= 0)) found.weight = i;
  }
  return found;
}

// Calls run(stripe, begin, end) for stripes of equal length; returns the first bad rows of all.
template <typename T, typename Run>
FirstBad over_stripes(const ClassSumRows<T>& rows, const int64_t* labels, int64_t N,
                      int64_t stripes, const Run& run) {
  std::vector<FirstBad> bad(stripes, {N, N});
  parallel_for(0, stripes, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = s * N / stripes, end = (s + 1) * N / stripes;
      bad[s] = first_bad(labels, rows.weight, rows.K, begin, end, N);
      run(s, begin, end);
    }
  });
  FirstBad all{N, N};
  for (const FirstBad& b : bad) {
    all.label = std::min(all.label, b.label), all.weight = std::min(all.weight, b.weight);
  }
  return all;
}

// Sums of every stripe, used in turn by the plans that cut rows into stripes.
class Stripes {
 public:
  Stripes(int64_t stripes, int64_t K, int64_t D, bool soft)
      : stripes_(stripes),
        K_(K),
        D_(D),
        sum_(stripes * K * D),
        total_(stripes * K),
        count_(soft ? 0 : stripes * K),
        shares_(soft ? stripes * K : 0) {}

  ClassSums of(int64_t s) const {
    const auto at = [&](auto* p, int64_t size) { return p ? p + s * size : nullptr; };
    return {sum_.get() + s * K_ * D_, total_.get() + s * K_, at(count_.get(), K_),
            at(shares_.get(), K_)};
  }

  // Columns first .. last of the sums of stripe s, and everything else where first is 0.
  void clear(int64_t s, int64_t first, int64_t last) const {
    const ClassSums to = of(s);
    if (first == 0 && last == D_) {
      std::fill_n(to.sum, K_ * D_, 0.0);
    } else {
      for (int64_t k = 0; k < K_; ++k)
        std::fill(to.sum + k * D_ + first, to.sum + k * D_ + last, 0.0);
    }
    if (first > 0) return;
    std::fill_n(to.total, K_, 0.0);
    if (to.count) std::fill_n(to.count, K_, 0);
    if (to.shares) std::fill_n(to.shares, K_, 0.0);
  }

  // All stripes, added in order and rounded once.
  template <typename T>
  void finish(bool weighted, const Results<T>& out) const {
    parallel_for(0, K_, std::max<int64_t>(1, 32768 / (stripes_ * (D_ + 2))),
                 [&](int64_t begin, int64_t end) {
                   add(sum_.get(), K_ * D_, begin * D_, end * D_, out.sum);
                   if (out.shares) add(shares_.get(), K_, begin, end, out.shares);
                   if (out.count) add(count_.get(), K_, begin, end, out.count);
                   if (weighted || out.shares) {
                     add(total_.get(), K_, begin, end, out.total);
                   } else {
                     for (int64_t k = begin; k < end; ++k) {
                       out.total[k] = static_cast<T>(out.count[k]);
                     }
                   }
                 });
  }

 private:
  template <typename From, typename To>
  void add(const From* from, int64_t size, int64_t begin, int64_t end, To* to) const {
    constexpr int64_t width = 128;
    From sum[width];
    for (int64_t i = begin; i < end; i += width) {
      const int64_t n = std::min(width, end - i);
      std::copy_n(from + i, n, sum);
      for (int64_t s = 1; s < stripes_; ++s) {
        const From* more = from + s * size + i;
        for (int64_t j = 0; j < n; ++j) sum[j] += more[j];
      }
      for (int64_t j = 0; j < n; ++j) to[i + j] = static_cast<To>(sum[j]);
    }
  }

  int64_t stripes_, K_, D_;
  Scratch<double> sum_, total_;
  Scratch<int64_t> count_;
  Scratch<double> shares_;
};

template <typename T>
FirstBad direct(const ClassSumRows<T>& rows, const int64_t* labels, int64_t N, int64_t stripes,
                const Results<T>& out) {
  const Stripes sums(stripes, rows.K, rows.D, false);
  const FirstBad bad =
      over_stripes(rows, labels, N, stripes, [&](int64_t s, int64_t begin, int64_t end) {
        sums.clear(s, 0, rows.D);
        class_sum_kernels_here<T>().direct(rows, labels, begin, end, sums.of(s));
      });
  sums.finish(rows.weight != nullptr, out);
  return bad;
}

// Rows in the order of their classes: order[start[k] .. start[k + 1]) are those of class k.
struct Sorted {
  Scratch<int64_t> order;
  std::vector<int64_t> start;
  FirstBad bad;
};

template <typename T>
Sorted sorted_rows(const ClassSumRows<T>& rows, const int64_t* labels, int64_t N) {
  const int64_t K = rows.K;
  const int64_t stripes = std::clamp<int64_t>(N / std::max<int64_t>(4 * K, 16384), 1, 32);
  const Scratch<int64_t> next(stripes * K);
  const auto taken = [&](int64_t i) {
    return static_cast<uint64_t>(labels[i]) < static_cast<uint64_t>(K) &&
           (!rows.weight || rows.weight[i] > 0);
  };
  Sorted sorted{Scratch<int64_t>(N), std::vector<int64_t>(K + 1), {}};
  sorted.bad = over_stripes(rows, labels, N, stripes, [&](int64_t s, int64_t begin, int64_t end) {
    int64_t* count = next.get() + s * K;
    std::fill_n(count, K, 0);
    for (int64_t i = begin; i < end; ++i) {
      if (taken(i)) ++count[labels[i]];
    }
  });
  int64_t at = 0;
  for (int64_t k = 0; k < K; ++k) {
    sorted.start[k] = at;
    for (int64_t s = 0; s < stripes; ++s) at += std::exchange(next.get()[s * K + k], at);
  }
  sorted.start[K] = at;
  parallel_for(0, stripes, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      int64_t* to = next.get() + s * K;
      for (int64_t i = s * N / stripes; i < (s + 1) * N / stripes; ++i) {
        if (taken(i)) sorted.order.get()[to[labels[i]]++] = i;
      }
    }
  });
  return sorted;
}

template <typename T>
FirstBad by_class(const ClassSumRows<T>& rows, const int64_t* labels, int64_t N,
                  const Results<T>& out) {
  const int64_t K = rows.K, D = rows.D;
  const Sorted sorted = sorted_rows(rows, labels, N);
  const std::vector<int64_t>& start = sorted.start;
  // Class k's runs are first_run[k] .. first_run[k + 1]; an empty class has one, without rows.
  std::vector<int64_t> first_run(K + 1);
  for (int64_t k = 0; k < K; ++k) {
    const int64_t runs = ceil_div(start[k + 1] - start[k], class_sum_run);
    first_run[k + 1] = first_run[k] + std::max<int64_t>(runs, 1);
    out.count[k] = start[k + 1] - start[k];
  }
  const int64_t runs = first_run[K];
  std::vector<int64_t> begin_of(runs + 1), class_of(runs);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t r = first_run[k]; r < first_run[k + 1]; ++r) {
      begin_of[r] = start[k] + (r - first_run[k]) * class_sum_run;
      class_of[r] = k;
    }
  }
  begin_of[runs] = start[K];
  // Sums of runs, for classes that have several of them; the others are rounded at once.
  const bool several = runs > K;
  const Scratch<double> partial(several ? runs * (D + 1) : 0);
  const auto write = [&](int64_t k, const double* sum) {
    for (int64_t d = 0; d < D; ++d) out.sum[k * D + d] = static_cast<T>(sum[d]);
    out.total[k] = rows.weight ? static_cast<T>(sum[D]) : static_cast<T>(out.count[k]);
  };
  // A run costs its rows, and its result about as much as two.
  const auto cost = [&](int64_t r) { return begin_of[r] + 2 * r; };
  const int64_t all = cost(runs);
  parallel_for(0, all, std::max<int64_t>(1, 65536 / (D + 1)), [&](int64_t from, int64_t to) {
    const auto first_at = [&](int64_t target) {
      int64_t low = 0, high = runs;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        (cost(middle) < target ? low : high) = cost(middle) < target ? middle + 1 : middle;
      }
      return low;
    };
    const Scratch<double> own(D + 1);
    const int64_t last = to == all ? runs : first_at(to);
    for (int64_t r = first_at(from); r < last; ++r) {
      const int64_t k = class_of[r], count = begin_of[r + 1] - begin_of[r];
      const bool alone = first_run[k + 1] - first_run[k] == 1;
      double* sum = alone ? own.get() : partial.get() + r * (D + 1);
      const int64_t* order = sorted.order.get() + begin_of[r];
      class_sum_kernels_here<T>().gather(rows, order, count, sum);
      sum[D] = 0;
      for (int64_t i = 0; rows.weight && i < count; ++i) {
        sum[D] += static_cast<double>(rows.weight[order[i]]);
      }
      if (alone) write(k, sum);
    }
  });
  parallel_for(0, several ? K : 0, std::max<int64_t>(1, 32768 / (D + 1)),
               [&](int64_t from, int64_t to) {
                 for (int64_t k = from; k < to; ++k) {
                   if (first_run[k + 1] - first_run[k] == 1) continue;
                   double* sum = partial.get() + first_run[k] * (D + 1);
                   for (int64_t r = first_run[k] + 1; r < first_run[k + 1]; ++r) {
                     const double* more = partial.get() + r * (D + 1);
                     for (int64_t d = 0; d <= D; ++d) sum[d] += more[d];
                   }
                   write(k, sum);
                 }
               });
  return sorted.bad;
}

template <typename T>
FirstBad hard_labels(const ClassSumRows<T>& rows, const int64_t* labels, int64_t N,
                     const Results<T>& out) {
  constexpr int64_t rows_of_stripe = 2048, most_stripes = 32, cached_bytes = 256 << 10;
  const int64_t sums = std::max<int64_t>(rows.K * rows.D, 1);
  // Sums of all stripes stay well below the rows themselves.
  const int64_t cheap = N / (8 * rows.K);
  const int64_t stripes = std::clamp<int64_t>(std::min(N / rows_of_stripe, cheap), 1, most_stripes);
  const bool enough = stripes >= 8 || N * rows.D < (1 << 16);
  if (sums * 8 <= cached_bytes && enough) return direct(rows, labels, N, stripes, out);
  return by_class(rows, labels, N, out);
}

template <typename T>
FirstBad soft_labels(const ClassSumRows<T>& rows, const T* shares, int64_t N,
                     const Results<T>& out) {
  constexpr int64_t rows_of_stripe = 1024, most_stripes = 32, most_bytes = int64_t{16} << 20;
  const ClassSumKernels<T>& kernels = class_sum_kernels_here<T>();
  const int64_t D = rows.D, K = rows.K;
  const int64_t room = most_bytes / (8 * std::max<int64_t>(K * D, 1));
  const int64_t stripes = std::clamp<int64_t>(std::min(N / rows_of_stripe, room), 1, most_stripes);
  // Few stripes are cut along the columns too, which moves no bit.
  const int64_t panels = std::max<int64_t>(1, ceil_div(D, kernels.columns));
  const int64_t groups = std::min(panels, ceil_div(16, stripes));
  const Stripes sums(stripes, K, D, true);
  const int64_t scratch = kernels.soft_scratch(K, D);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) * groups * stripes / (N * K * (D + 4) + 1));
  parallel_for(0, stripes * groups, grain, [&](int64_t from, int64_t to) {
    const Scratch<T> own(scratch);
    for (int64_t unit = from; unit < to; ++unit) {
      const int64_t s = unit / groups, g = unit % groups;
      const int64_t first = g * panels / groups * kernels.columns;
      const int64_t last = std::min(D, (g + 1) * panels / groups * kernels.columns);
      sums.clear(s, first, last);
      kernels.soft(rows, shares, s * N / stripes, (s + 1) * N / stripes, first, last, sums.of(s),
                   own.get());
    }
  });
  sums.finish(true, out);
  return first_bad(static_cast<const int64_t*>(nullptr), rows.weight, K, 0, N, N);
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Four class_sum_as(const Tensor& x, const Tensor& labels, const std::optional<Tensor>& weight,
                  int64_t K) {
  const int64_t N = x.size(0), D = x.size(1);
  const bool soft = labels.dim() == 2;
  const ScalarType type = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const auto empty = [&](std::vector<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(x, shape, dtype);
  };
  Tensor sum = empty({K, D}, type), total = empty({K}, type);
  Tensor count = empty({K}, soft ? type : ScalarType::Long), bad = empty({2}, ScalarType::Long);
  const ClassSumRows<T> rows{element_of(x), x.const_data_ptr(),
                             weight ? static_cast<const T*>(weight->const_data_ptr()) : nullptr, D,
                             K};
  const Results<T> out{data_of<T>(sum), data_of<T>(total), soft ? nullptr : data_of<int64_t>(count),
                       soft ? data_of<T>(count) : nullptr};
  const FirstBad found =
      soft ? soft_labels(rows, static_cast<const T*>(labels.const_data_ptr()), N, out)
           : hard_labels(rows, static_cast<const int64_t*>(labels.const_data_ptr()), N, out);
  data_of<int64_t>(bad)[0] = found.label < N ? found.label : -1;
  data_of<int64_t>(bad)[1] = found.weight < N ? found.weight : -1;
  return {sum, total, count, bad};
}

Four class_sum(const Tensor& x, const Tensor& labels, const std::optional<Tensor>& weight,
               int64_t n_classes) {
  const auto run = element_of(x) == Element::f64 ? class_sum_as<double> : class_sum_as<float>;
  return run(x, labels, weight, n_classes);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("class_sum", TORCH_BOX(&fedkernels::class_sum));
}
