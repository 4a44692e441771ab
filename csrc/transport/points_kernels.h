// Sweeps over the plan between two clouds, tile by tile. Parallel axis: rows, in stripes.
//
// A block of rows meets the panels of y one after the other: the tile of products stays in the
// first cache, its entries become 2^(K + u + v) there. One full iteration is one sweep: the row
// sums of a block give its new u, and the entries, held for the block alone, are then added to the
// column sums with the factor 2^(new u - u). The u and v of the iteration before take the place of
// the largest term: after the first iteration all exponents are near or below 0.
//
// Sums run in T over at most `flush` panels, then in double.
// Work: n m (2 D + about 35) operations of T a sweep, one exp2 an entry.
//
// Included once per instruction set (common/each_capability.h): no include guard.

#include "common/simd_math.h"
#include "common/product.h"

#include "transport/points_tile.h"

namespace points {

template <typename T>
constexpr T infinite = std::numeric_limits<T>::infinity();

// How far a side moves; log_r: log2 of its sums.
template <typename T>
inline Vec<T> move(const Side<T>& side, Vec<T> log_mass, Vec<T> u, Vec<T> log_r) {
  const Vec<T> gap = log_mass - log_r;
  if (side.damping != T{1}) {
    return side.relax * ((log_mass - u) - side.damping * (log_r - u));
  }
  if (side.omega != T{1}) {  // relaxed_factor(2^gap, omega)
    const Vec<T> x = exp2_of<T>(gap) - T{1};
    const Vec<T> factor = (T{2} + (T{1} + side.omega) * x) / (T{2} + (T{1} - side.omega) * x);
    return (x > T(-0.5)) & (x < T{1}) ? log2_of<T>(factor) : gap;
  }
  return side.relax * gap;
}

template <typename T>
inline bool in_range(T r) {
  return r >= Limits<T>::sum && r <= std::numeric_limits<T>::max();
}

// The new u of a block and the factors 2^(new - u); false if one of them is out of range.
template <typename T>
inline bool step_rows(const Sweep<T>& s, int64_t row, int64_t rows, const double* total,
                      T* factor) {
  constexpr int64_t lanes = Simd<T>::lanes, w = width<T>;
  T r[w], u[w], log_mass[w], next[w];
  for (int64_t i = 0; i < w; ++i) {
    r[i] = i < rows ? static_cast<T>(total[i]) : T{1};
    u[i] = i < rows ? s.u[row + i] : T{0};
    log_mass[i] = i < rows ? s.side.log_mass[row + i] : T{0};
  }
  for (int64_t i = 0; i < w; i += lanes) {
    const Vec<T> step =
        move<T>(s.side, load<T>(log_mass + i), load<T>(u + i), log2_of<T>(load<T>(r + i)));
    const Vec<T> after = load<T>(u + i) + step;
    store<T>(next + i, after);
    store<T>(factor + i, exp2_of<T>(after - load<T>(u + i)));  // of u as it is rounded
  }
  bool good = true;
  for (int64_t i = 0; i < rows; ++i) {
    const bool none = log_mass[i] == -infinite<T>;
    good &= none || (in_range(r[i]) && factor[i] <= Limits<T>::step);
    if (none) factor[i] = 0;
    s.next[row + i] = none ? -infinite<T> : next[i];
    s.r[row + i] = r[i];
  }
  return good;
}

template <typename T>
bool advance(const Side<T>& side, const T* u, const T* r, int64_t count, T* next) {
  bool good = true;
  for (int64_t i = 0; i < count; i += Simd<T>::lanes) {
    const Vec<T> mass = load<T>(side.log_mass + i), before = load<T>(u + i);
    const Vec<T> step = move<T>(side, mass, before, log2_of<T>(load<T>(r + i)));
    store<T>(next + i, mass == -infinite<T> ? mass : before + step);
  }
  for (int64_t i = 0; i < count; ++i) good &= side.log_mass[i] == -infinite<T> || in_range(r[i]);
  return good;
}

template <typename T>
void advance_log(const Side<T>& side, const T* u, const T* log_sum, int64_t count, T* next) {
  for (int64_t i = 0; i < count; i += Simd<T>::lanes) {
    const Vec<T> mass = load<T>(side.log_mass + i), sum = load<T>(log_sum + i);
    Vec<T> after = mass - side.damping * sum;
    if (side.relax != T{1}) {
      after = load<T>(u + i) + side.relax * (after - load<T>(u + i));
    } else if (side.omega != T{1}) {
      after = load<T>(u + i) + move<T>(side, mass, load<T>(u + i), sum + load<T>(u + i));
    }
    store<T>(next + i, mass == -infinite<T> ? mass : after);
  }
}

template <Metric metric, typename T>
bool sweep_as(const Sweep<T>& s, int64_t begin, int64_t end, T* block) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t height = block_rows<T>(s.points.y.count);
  const int64_t panels = (s.points.y.count + w - 1) / w;
  bool good = true;
  for (int64_t row = begin; row < end; row += height) {
    const int64_t rows = end - row < height ? end - row : height;
    RowSums<T> sums(rows);
    for (int64_t p = 0; p < panels; ++p) {
      T* tile = s.column_sum ? block + p * height * w : block;
      const T* from = tile_of<metric, T>(s.points, row, rows, p, tile);
      over_tile<metric, T>(s.points, s.u, s.v, row, rows, p, from, w,
                           [&](int64_t i, Vec<T>, Vec<T>, Vec<T> p0, Vec<T> p1) {
                             store<T>(tile + i * w, p0);
                             store<T>(tile + i * w + lanes, p1);
                             sums.part[i] += p0 + p1;
                           });
      if (p % flush == flush - 1) sums.close(rows);
    }
    sums.close(rows);
    T factor[w];
    good &= step_rows<T>(s, row, rows, sums.total, factor);
    if (!s.column_sum) continue;
    for (int64_t p = 0; p < panels; ++p) {
      const T* tile = block + p * height * w;
      Vec<T> sum0{}, sum1{};
      for (int64_t i = 0; i < rows; ++i) {
        sum0 += factor[i] * load<T>(tile + i * w);
        sum1 += factor[i] * load<T>(tile + i * w + lanes);
      }
      T* to = s.column_sum + p * w;
      store<T>(to, load<T>(to) + sum0);
      store<T>(to + lanes, load<T>(to + lanes) + sum1);
    }
  }
  return good;
}

template <typename T>
bool sweep(const Sweep<T>& s, int64_t begin, int64_t end, T* scratch) {
  bool good = false;
  with_metric(s.points.metric,
              [&](auto metric) { good = sweep_as<metric.value, T>(s, begin, end, scratch); });
  return good;
}

template <Metric metric, typename T>
void log_sums_as(const Pair<T>& points, const T* v, int64_t begin, int64_t end, T* out, T* block) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const int64_t height = block_rows<T>(points.y.count);
  const int64_t panels = (points.y.count + w - 1) / w;
  for (int64_t row = begin; row < end; row += height) {
    const int64_t rows = end - row < height ? end - row : height;
    Vec<T> top[w];
    for (int64_t i = 0; i < rows; ++i) top[i] = broadcast(-infinite<T>);
    for (int64_t p = 0; p < panels; ++p) {
      T* tile = block + p * height * w;
      const T* from = tile_of<metric, T>(points, row, rows, p, tile);
      const T* at_v = v + p * w;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t l = 0; l < w; l += lanes) {
          const Vec<T> c = cost<metric, T>(load<T>(from + i * w + l));
          const Vec<T> z = load<T>(at_v + l) - c * points.scale;
          store<T>(tile + i * w + l, z);
          top[i] = at_least<T>(top[i], z);
        }
      }
    }
    T largest[w];
    for (int64_t i = 0; i < rows; ++i) {
      T best = top[i][0];
      for (int l = 1; l < lanes; ++l) best = top[i][l] > best ? top[i][l] : best;
      largest[i] = best > -infinite<T> ? best : T{0};
    }
    RowSums<T> sums(rows);
    for (int64_t p = 0; p < panels; ++p) {
      const T* tile = block + p * height * w;
      int64_t i = 0;
      for (; i + 2 <= rows; i += 2) {
        Vec<T> z[4];
#pragma GCC unroll 4
        for (int l = 0; l < 4; ++l) {
          z[l] = load<T>(tile + i * w + l * lanes) - largest[i + l / 2];
        }
        exp2_many<T, 4>(z);
        sums.part[i] += z[0] + z[1];
        sums.part[i + 1] += z[2] + z[3];
      }
      for (; i < rows; ++i) {
        Vec<T> z[2] = {load<T>(tile + i * w) - largest[i],
                       load<T>(tile + i * w + lanes) - largest[i]};
        exp2_many<T, 2>(z);
        sums.part[i] += z[0] + z[1];
      }
      if (p % flush == flush - 1) sums.close(rows);
    }
    sums.close(rows);
    for (int64_t i = 0; i < rows; ++i) {
      out[row + i] = largest[i] + log2_of<T>(static_cast<T>(sums.total[i]));
    }
  }
}

template <typename T>
void log_sums(const Pair<T>& points, const T* v, int64_t begin, int64_t end, T* out, T* scratch) {
  with_metric(points.metric, [&](auto metric) {
    log_sums_as<metric.value, T>(points, v, begin, end, out, scratch);
  });
}

template <typename T>
void log2_row(const T* in, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += Simd<T>::lanes) {
    store<T>(out + i, log2_of<T>(load<T>(in + i)));
  }
}

template <typename T>
void exp2_row(const T* in, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += Simd<T>::lanes) {
    store<T>(out + i, exp2_of<T>(load<T>(in + i)));
  }
}

}  // namespace points

#include "transport/points_plan.h"
