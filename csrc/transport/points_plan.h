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
      const T* from = tile_of<metric, T>(points, row, rows, p, tile);
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
      fill_tile<metric, T>(points, row, rows, p, tile, w);
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

// Runs the rows of [begin, end): `weigh(row, i, panel, C, C, P, P, at)` turns what the tile holds
// of a row, at `at`, into weights; `finish(row, rows, sums)` gets sums (rows, d) = weights V.
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
        fill_tile<metric, T>(g.points, row, rows, first + p, at, wide);
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

// What the pairs of a row of weights that are close by add to its gradient, weight (x_i - y_j): the
// difference of two large sums, elsewhere; here from the differences, added to `to` (d). Their
// weights become 0. `held` (d): room for a row of x. Rare, and out of the way of the rest.
template <typename T>
[[gnu::noinline]] void take_apart(const Weighted<T>& g, int64_t i, int64_t panel,
                                  const typename Simd<T>::ivec* close, Vec<T>* weight, T* to,
                                  T* held) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const T* x = g.points.x.panels + i / w * w * g.points.D + i % w;
  for (int64_t d = 0; d < g.d; ++d) held[d] = d < g.points.D ? x[d * w] : T{0};
  for (int l = 0; l < 2; ++l) {
    for (int64_t j = 0; j < lanes; ++j) {
      const T own = weight[l][j];
      if (close[l][j] == 0 || own == 0) continue;
      const T* y = g.V + (panel * w + l * lanes + j) * g.d;
      for (int64_t d = 0; d < g.d; d += lanes) {
        store<T>(to + d, load<T>(to + d) + own * (load<T>(held + d) - load<T>(y + d)));
      }
    }
    weight[l] = close[l] ? Vec<T>{} : weight[l];
  }
}

template <typename T>
void gradient(const Weighted<T>& g, int64_t begin, int64_t end, T* out, T* scratch) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t D = g.points.D;
  with_metric(g.points.metric, [&](auto kind) {
    constexpr Metric metric = kind.value;
    Vec<T> share[w];  // sums of the weights of a row; for cosine of weights times cosines
    for (int64_t i = 0; i < w; ++i) share[i] = Vec<T>{};
    T* apart = scratch + w * (chunk * w + g.d);  // (w, d), and a row of x
    std::memset(apart, 0, sizeof(T) * w * g.d);
    const auto square = [](Vec<T> c) { return metric == Metric::euclidean ? c * c : c; };
    const auto weight = [&](Vec<T> p, Vec<T> c, T alpha, Vec<T> beta) {
      const Vec<T> all = p * ((g.w0 + g.w1 * c) + (alpha + beta));
      if constexpr (metric != Metric::euclidean)
        return all;
      else
        return c > T{0} ? all / c : Vec<T>{};
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
            const T* norms = g.points.y.norms + panel * w;
            const T norm = g.points.x.norms[row + i];
            const typename Simd<T>::ivec close[2] = {
                is_close<metric, T>(square(c0), norm + load<T>(norms)),
                is_close<metric, T>(square(c1), norm + load<T>(norms + lanes))};
            if (__builtin_expect(any(close[0] | close[1]), false)) {
              Vec<T> both[2] = {p0, p1};
              take_apart<T>(g, row + i, panel, close, both, apart + i * g.d, apart + w * g.d);
              p0 = both[0], p1 = both[1];
            }
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
              const T far = total * x[d * w] - sums[i * g.d + d];
              out[(row + i) * D + d] = factor * (far + apart[i * g.d + d]);
            }
            if constexpr (metric != Metric::cosine) {
              std::memset(apart + i * g.d, 0, sizeof(T) * g.d);
            }
          }
        });
  });
}

}  // namespace points

template <typename T>
constexpr PointsKernels<T> points_kernels = {
    points::width<T>,       points::block_rows<T>, points::scratch_size<T>, points::norms<T>,
    points::keep_tiles<T>,  points::sweep<T>,      points::log_sums<T>,     points::marginals<T>,
    points::plan<T>,        points::apply<T>,      points::gradient<T>,     points::advance<T>,
    points::advance_log<T>, points::log2_row<T>,   points::exp2_row<T>};
