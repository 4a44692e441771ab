// What reads a finished plan between two clouds: marginals and cost, the plan itself, its product
// with rows, gradients with respect to the points. The second half of points_kernels.h.
//
// Included once per instruction set, by points_kernels.h: no include guard.

namespace points {

template <Metric metric, typename T>
void marginals_as(const Pair<T>& points, const T* u, const T* v, int64_t begin, int64_t end,
                  double* r, double* total_cost, T* column_sum, T* tile) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t panels = (points.y.count + w - 1) / w;
  for (int64_t row = begin; row < end; row += w) {
    const int64_t rows = end - row < w ? end - row : w;
    RowSums<T> sums(rows), costs(rows);
    for (int64_t p = 0; p < panels; ++p) {
      const T* from = products<T>(points, row, rows, p, tile);
      Vec<T> sum0{}, sum1{};
      over_tile<metric, T>(points, u, v, row, rows, p, from, w,
                           [&](int64_t i, Vec<T> c0, Vec<T> c1, Vec<T> p0, Vec<T> p1) {
                             sums.part[i] += p0 + p1;
                             costs.part[i] += p0 * c0 + p1 * c1;
                             sum0 += p0;
                             sum1 += p1;
                           });
      T* to = column_sum + p * w;
      store<T>(to, load<T>(to) + sum0);
      store<T>(to + lanes, load<T>(to + lanes) + sum1);
      if (p % flush == flush - 1) sums.close(rows), costs.close(rows);
    }
    sums.close(rows), costs.close(rows);
    for (int64_t i = 0; i < rows; ++i) {
      r[row + i] = sums.total[i];
      total_cost[row + i] = costs.total[i];
    }
  }
}

template <typename T>
void marginals(const Pair<T>& points, const T* u, const T* v, int64_t begin, int64_t end, double* r,
               double* total_cost, T* column_sum, T* scratch) {
  with_metric(points.metric, [&](auto metric) {
    marginals_as<metric.value, T>(points, u, v, begin, end, r, total_cost, column_sum, scratch);
  });
}

template <Metric metric, typename T>
void plan_as(const Pair<T>& points, const T* u, const T* v, T factor, int64_t begin, int64_t end,
             T* out, int64_t ld, T* tile) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t panels = (points.y.count + w - 1) / w;
  for (int64_t row = begin; row < end; row += w) {
    const int64_t rows = end - row < w ? end - row : w;
    for (int64_t p = 0; p < panels; ++p) {
      multiply_tile<T>(points, row, rows, p, tile, w);
      const int64_t given = points.y.count - p * w < w ? points.y.count - p * w : w;
      over_tile<metric, T>(points, u, v, row, rows, p, tile, w,
                           [&](int64_t i, Vec<T>, Vec<T>, Vec<T> p0, Vec<T> p1) {
                             T* to = given == w ? out + (row + i) * ld + p * w : tile + i * w;
                             store<T>(to, factor * p0);
                             store<T>(to + lanes, factor * p1);
                           });
      if (given == w) continue;
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(out + (row + i) * ld + p * w, tile + i * w, sizeof(T) * given);
      }
    }
  }
}

template <typename T>
void plan(const Pair<T>& points, const T* u, const T* v, T factor, int64_t begin, int64_t end,
          T* out, int64_t ld, T* scratch) {
  with_metric(points.metric, [&](auto metric) {
    plan_as<metric.value, T>(points, u, v, factor, begin, end, out, ld, scratch);
  });
}

// Runs the rows of [begin, end): `weigh(row, i, panel, C, C, P, P, at)` turns the products of a row,
// which are at `at`, into weights; `finish(row, rows, sums)` gets sums (rows, d) = weights V.
template <Metric metric, typename T, typename Weigh, typename Finish>
inline void weighted_rows(const Weighted<T>& g, int64_t begin, int64_t end, T* scratch,
                          const Weigh& weigh, const Finish& finish) {
  constexpr int64_t w = width<T>, wide = chunk * w;
  const int64_t panels = (g.points.y.count + w - 1) / w;
  T* tile = scratch;
  T* sums = scratch + w * wide;
  for (int64_t row = begin; row < end; row += w) {
    const int64_t rows = end - row < w ? end - row : w;
    for (int64_t first = 0; first < panels; first += chunk) {
      const int64_t some = panels - first < chunk ? panels - first : chunk;
      for (int64_t p = 0; p < some; ++p) {
        T* at = tile + p * w;
        multiply_tile<T>(g.points, row, rows, first + p, at, wide);
        over_tile<metric, T>(g.points, g.u, g.v, row, rows, first + p, at, wide,
                             [&](int64_t i, Vec<T> c0, Vec<T> c1, Vec<T> p0, Vec<T> p1) {
                               weigh(row, i, first + p, c0, c1, p0, p1, at + i * wide);
                             });
      }
      for (int64_t d = 0; d < g.d; d += w) {
        multiply_panel<T>(rows, some * w, tile, wide, 1, g.V + first * w * g.d + d, g.d, sums + d,
                          g.d, first == 0);
      }
    }
    finish(row, rows, sums);
  }
}

template <typename T>
void apply(const Weighted<T>& g, int64_t begin, int64_t end, T* out, int64_t given, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  with_metric(g.points.metric, [&](auto metric) {
    weighted_rows<metric.value, T>(
        g, begin, end, scratch,
        [&](int64_t, int64_t, int64_t, Vec<T>, Vec<T>, Vec<T> p0, Vec<T> p1, T* to) {
          store<T>(to, p0);
          store<T>(to + lanes, p1);
        },
        [&](int64_t row, int64_t rows, const T* sums) {
          for (int64_t i = 0; i < rows; ++i) {
            std::memcpy(out + (row + i) * given, sums + i * g.d, sizeof(T) * given);
          }
        });
  });
}

template <typename T>
void gradient(const Weighted<T>& g, int64_t begin, int64_t end, T* out, T* scratch) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t D = g.points.D;
  with_metric(g.points.metric, [&](auto kind) {
    constexpr Metric metric = kind.value;
    Vec<T> share[w];  // sums of the weights of a row; for cosine of weights times cosines
    for (int64_t i = 0; i < w; ++i) share[i] = Vec<T>{};
    const auto weight = [&](Vec<T> p, Vec<T> c, T alpha, Vec<T> beta) {
      const Vec<T> all = p * ((g.w0 + g.w1 * c) + (alpha + beta));
      if constexpr (metric != Metric::euclidean) return all;
      else return c > T{0} ? all / c : Vec<T>{};
    };
    weighted_rows<metric, T>(
        g, begin, end, scratch,
        [&](int64_t row, int64_t i, int64_t panel, Vec<T> c0, Vec<T> c1, Vec<T> p0, Vec<T> p1,
            T* to) {
          const T alpha = g.alpha ? g.alpha[row + i] : T{0};
          const T* beta = g.beta ? g.beta + panel * w : nullptr;
          p0 = weight(p0, c0, alpha, beta ? load<T>(beta) : Vec<T>{});
          p1 = weight(p1, c1, alpha, beta ? load<T>(beta + lanes) : Vec<T>{});
          if constexpr (metric == Metric::cosine) {
            share[i] += p0 * load<T>(to) + p1 * load<T>(to + lanes);
          } else {
            share[i] += p0 + p1;
          }
          store<T>(to, p0);
          store<T>(to + lanes, p1);
        },
        [&](int64_t row, int64_t rows, const T* sums) {
          for (int64_t i = 0; i < rows; ++i) {
            const T total = sum_of<T>(share[i]);
            share[i] = Vec<T>{};
            const T* x = g.points.x.panels + (row + i) / w * w * D + (row + i) % w;
            const T factor = metric == Metric::sqeuclidean ? T{2}
                             : metric == Metric::euclidean ? T{1}
                                                           : g.points.x.norms[row + i];
            for (int64_t d = 0; d < D; ++d) {
              out[(row + i) * D + d] = factor * (total * x[d * w] - sums[i * g.d + d]);
            }
          }
        });
  });
}

}  // namespace points

template <typename T>
constexpr PointsKernels<T> points_kernels = {points::width<T>,
                                             points::block_rows<T>,
                                             points::scratch_size<T>,
                                             points::norms<T>,
                                             points::keep_products<T>,
                                             points::sweep<T>,
                                             points::log_sums<T>,
                                             points::marginals<T>,
                                             points::plan<T>,
                                             points::apply<T>,
                                             points::gradient<T>,
                                             points::advance<T>,
                                             points::advance_log<T>,
                                             points::log2_row<T>,
                                             points::exp2_row<T>};
