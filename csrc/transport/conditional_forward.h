// Conditional transport, forward: softmax statistics of rows and columns from a tile of dots.
//
// A pair's exponential is shared by both directions: e_ij = exp2(s_ij - max_j s_ij) is at most 1, a
// row weighs it by q_j and a column by exp2(max_j s_ij - shift) p_i. That loses nothing as long as
// the logits of a row of the tile lie within `sharing` octaves: what underflows in the weight is
// below 2^-46 of the column's sum. A tile that is wider takes an exponential for each direction.
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

template <typename T>
constexpr T sharing = sizeof(T) == 8 ? T(960) : T(80);

// Statistics of one chunk of columns, for the rows of a block; and of a block, for its columns.
template <typename T>
struct Chunk {
  T* S;
  int64_t stride;
  int64_t rows, n;           // n columns, whole vectors
  T *top, *total, *sum;      // rows: shift, sum of q e, sum of q e c
  T* spread;                 // rows: largest less smallest logit
  T *shift, *weight, *cost;  // columns: shift, sum of p e, sum of p e c
};

// Two rows at a time, so that the columns' sums pass through registers once for both.
template <typename T, int MODE, int R>
inline void shared_rows(const Pair<T, MODE>& pair, T scale, const Chunk<T>& t, int64_t i) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> total[R], sum[R];
  for (int r = 0; r < R; ++r) total[r] = sum[r] = Vec<T>{};
  for (int64_t j = 0; j < t.n; j += lanes) {
    Vec<T> weight = load(t.weight + j), cost = load(t.cost + j);
    const Vec<T> q = load(pair.column[mass] + j);
    for (int r = 0; r < R; ++r) {
      const Vec<T> kept = load(t.S + (i + r) * t.stride + j);
      const Vec<T> c = pair.cost(kept, i + r, j);
      const Vec<T> e = exp2_inside<T>(pair.logit(kept, i + r, j) * scale - t.top[i + r]);
      const Vec<T> row = e * q;
      total[r] += row;
      sum[r] += row * c;
      const Vec<T> column = e * pair.row[factor][i + r];
      weight += column;
      cost += column * c;
    }
    store(t.weight + j, weight);
    store(t.cost + j, cost);
  }
  for (int r = 0; r < R; ++r) {
    t.total[i + r] = sum_across<T>(total[r]);
    t.sum[i + r] = sum_across<T>(sum[r]);
  }
}

// A row by itself. Its bits are those of `shared_rows` unless its own logits are too wide.
template <typename T, int MODE>
inline void lone_row(const Pair<T, MODE>& pair, T scale, const Chunk<T>& t, int64_t i) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const T* S = t.S + i * t.stride;
  const bool wide = t.spread[i] > sharing<T>;
  if (wide) {
    // Shifted by the largest among those that have mass.
    Vec<T> top = broadcast(-far<T>);
    for (int64_t j = 0; j < t.n; j += lanes) {
      top = larger<Vec<T>>(top,
                           pair.logit(load(S + j), i, j) * scale + load(pair.column[log_mass] + j));
    }
    t.top[i] = largest_across<T>(top);
  }
  Vec<T> total{}, sum{};
  for (int64_t j = 0; j < t.n; j += lanes) {
    const Vec<T> kept = load(S + j), c = pair.cost(kept, i, j);
    const Vec<T> s = pair.logit(kept, i, j) * scale;
    const Vec<T> row = wide ? exp2_of<T>((s - t.top[i]) + load(pair.column[log_mass] + j))
                            : exp2_inside<T>(s - t.top[i]) * load(pair.column[mass] + j);
    total += row;
    sum += row * c;
  }
  t.total[i] = sum_across<T>(total);
  t.sum[i] = sum_across<T>(sum);
}

template <typename T, int MODE>
inline void lone_columns(const Pair<T, MODE>& pair, T scale, const Chunk<T>& t) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t j = 0; j < t.n; j += lanes) {
    Vec<T> top = broadcast(-far<T>);
    for (int64_t i = 0; i < t.rows; ++i) {
      const Vec<T> s = pair.logit(load(t.S + i * t.stride + j), i, j) * scale;
      top = larger<Vec<T>>(top, s + pair.row[factor][i]);
    }
    Vec<T> weight{}, cost{};
    for (int64_t i = 0; i < t.rows; ++i) {
      const Vec<T> kept = load(t.S + i * t.stride + j);
      const Vec<T> s = pair.logit(kept, i, j) * scale;
      const Vec<T> e = exp2_of<T>((s - top) + pair.row[factor][i]);
      weight += e;
      cost += e * pair.cost(kept, i, j);
    }
    store(t.shift + j, top);
    store(t.weight + j, weight);
    store(t.cost + j, cost);
  }
}

// (shift, total, sum) += another such triple, in place; one exponential for both.
template <typename T>
inline void merge(T* shift, T* total, T* sum, Vec<T> shift_b, Vec<T> total_b, Vec<T> sum_b) {
  const Vec<T> gap = load(shift) - shift_b;
  const Vec<T> e = exp2_of<T>(gap < T{0} ? gap : -gap);
  const Vec<T> mine = gap < T{0} ? e : broadcast(T{1}), other = gap < T{0} ? broadcast(T{1}) : e;
  store(shift, gap < T{0} ? shift_b : load(shift));
  store(total, load(total) * mine + total_b * other);
  store(sum, load(sum) * mine + sum_b * other);
}

template <typename T, int MODE>
void statistics(const Conditional<T>& f, const Chunk<T>& t, const Side<T>& row,
                const Side<T>& column) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const Pair<T, MODE> pair{row, column};
  const T scale = f.scale;
  bool shared = true;
  for (int64_t i = 0; i < t.rows; ++i) {
    T* S = t.S + i * t.stride;
    Vec<T> top = broadcast(-far<T>), bottom = broadcast(far<T>);
    for (int64_t j = 0; j < t.n; j += lanes) {
      const Vec<T> kept = pair.kept(load(S + j), i, j);
      if constexpr (pair.keeps_cosine || MODE == 5) store(S + j, kept);
      const Vec<T> s = pair.logit(kept, i, j);
      top = larger(top, s);  // a NaN moves neither
      bottom = smaller(bottom, s);
    }
    t.top[i] = largest_across<T>(top) * scale;
    t.spread[i] = t.top[i] - smallest_across<T>(bottom) * scale;
    shared &= !(t.spread[i] > sharing<T>);
  }
  // What a row's logits lack of those of its mass: log p, and its own shift.
  for (int64_t i = 0; i < t.rows; i += lanes) {
    const Vec<T> own = pair.row_shift ? load(row[shift] + i) * scale : Vec<T>{};
    store(row[factor] + i, load(row[log_mass] + i) + own);
  }
  if (shared) {
    for (int64_t i = 0; i < t.rows; i += lanes) {
      store(row[factor] + i, load(row[factor] + i) + load(t.top + i));
    }
    T block_shift = -far<T>;
    for (int64_t i = 0; i < t.rows; ++i) {
      block_shift = row[factor][i] > block_shift ? row[factor][i] : block_shift;
    }
    for (int64_t i = 0; i < t.rows; i += lanes) {
      store(row[factor] + i, exp2_of<T>(load(row[factor] + i) - block_shift));
    }
    std::fill_n(t.shift, t.n, block_shift);
    std::memset(t.weight, 0, sizeof(T) * t.n);
    std::memset(t.cost, 0, sizeof(T) * t.n);
    int64_t i = 0;
    for (; i + 2 <= t.rows; i += 2) shared_rows<T, MODE, 2>(pair, scale, t, i);
    if (i < t.rows) shared_rows<T, MODE, 1>(pair, scale, t, i);
  } else {
    for (int64_t i = 0; i < t.rows; ++i) lone_row<T, MODE>(pair, scale, t, i);
    lone_columns<T, MODE>(pair, scale, t);
  }
  if constexpr (pair.row_shift) {
    for (int64_t i = 0; i < t.rows; ++i) t.top[i] += row[shift][i] * scale;
  }
}

// Rows' (shift, total, sum) to expected cost and log of the total.
template <typename T>
inline T expected(T total, T sum) {
  return total == 0 ? T{0} : sum / total;
}

template <typename T>
inline T mass_scale(const Points<T>& points) {
  return points.mass ? points.largest_mass : T{1} / static_cast<T>(points.count);
}

template <typename T>
inline Vec<double> widened(const T* from, int64_t n) {
  Vec<double> values{};
  for (int64_t l = 0; l < Simd<double>::lanes; ++l) values[l] = from[std::min(l, n - 1)];
  return values;
}

template <typename T>
void finish(const T* shift, const T* total, const T* sum, T scale, int64_t n, T* cost, T* lse) {
  // In double: what rounds is the result alone.
  constexpr int64_t lanes = Simd<double>::lanes;
  const double offset = log2_of<double>(static_cast<double>(scale));
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t m = std::min(lanes, n - i);
    const Vec<double> wide = log2_of<double>(widened(total + i, m));
    for (int64_t l = 0; l < m; ++l) {
      lse[i + l] = static_cast<T>((wide[l] + (shift[i + l] + offset)) * 0.69314718055994530942);
      cost[i + l] = expected(total[i + l], sum[i + l]);
    }
  }
}

// Columns of a chunk: all chunks of a section are equally wide, and at most 512 bytes.
template <typename T>
inline int64_t chunk_of(int64_t padded) {
  const int64_t most = std::max<int64_t>(512 / sizeof(T), columns<T>);
  const int64_t chunks = (padded + most - 1) / most;
  return round_up((padded + chunks - 1) / chunks, columns<T>);
}

constexpr int64_t block_rows = conditional_block_rows;

template <typename T>
int64_t scratch_size(const Conditional<T>& f) {
  // Rows, tile, gradient rows, sides, statistics, and rows of a panel while it is prepared.
  const int64_t tile = block_rows * (chunk_of<T>(f.padded) + 64);
  const int64_t block = block_rows * (2 * f.stride + conditional_fields + 16) + 4 * f.padded;
  return block + tile + columns<T> * f.stride + 256;
}

// Hands out pieces of a thread's scratch, each on a cache line.
template <typename T>
struct Pieces {
  T* at;
  T* take(int64_t count) {
    T* piece = at;
    at += round_up(count, 64 / static_cast<int64_t>(sizeof(T)));
    return piece;
  }
};

template <typename T, int MODE>
void forward_mode(const Conditional<T>& f, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Pieces<T> pieces{scratch};
  T* copy = pieces.take(block_rows * f.stride);
  const Side<T> row{pieces.take(block_rows * conditional_fields), block_rows};
  const int64_t chunk = chunk_of<T>(f.padded);
  T* running[3];
  for (T*& piece : running) piece = pieces.take(block_rows);
  Chunk<T> t{};
  t.stride = chunk + 64 / static_cast<int64_t>(sizeof(T));
  t.S = pieces.take(block_rows * t.stride);
  for (T** piece : {&t.top, &t.total, &t.sum, &t.spread}) *piece = pieces.take(block_rows);
  for (T** piece : {&t.shift, &t.weight, &t.cost}) *piece = pieces.take(chunk);

  T *shift_sum = sums, *total_sum = sums + f.padded, *cost_sum = sums + 2 * f.padded;
  std::fill_n(shift_sum, f.padded, -far<T>);
  std::memset(total_sum, 0, sizeof(T) * 2 * f.padded);

  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = block * block_rows;
    t.rows = std::min(block_rows, f.left.count - from);
    T* rows = f.centre ? copy : nullptr;
    make_ready(f, f.left, true, from, t.rows, t.rows, rows, row, 0);
    const T* read = rows ? rows : f.left.points + from * f.D;
    const int64_t stride = rows ? f.stride : f.D;
    if (f.first_section) {
      std::fill_n(running[0], block_rows, -far<T>);
      for (int s = 1; s < 3; ++s) std::fill_n(running[s], block_rows, T{0});
    } else {
      for (int s = 0; s < 3; ++s) {
        std::memcpy(running[s], f.row_state + s * f.left.count + from, sizeof(T) * t.rows);
      }
    }
    for (int64_t at = 0; at < f.padded; at += chunk) {
      const int64_t panels = std::min(chunk, f.padded - at);
      dots(f, read, stride, t.rows, at, panels, t.S, t.stride);
      t.n = std::min(panels, round_up(f.width - at, lanes));
      const Side<T> column{f.columns.data + at, f.columns.length};
      statistics<T, MODE>(f, t, row, column);
      for (int64_t i = 0; i < t.rows; i += lanes) {
        merge<T>(running[0] + i, running[1] + i, running[2] + i, load(t.top + i), load(t.total + i),
                 load(t.sum + i));
      }
      for (int64_t j = 0; j < t.n; j += lanes) {
        merge<T>(shift_sum + at + j, total_sum + at + j, cost_sum + at + j, load(t.shift + j),
                 load(t.weight + j), load(t.cost + j));
      }
    }
    if (f.last_section) {
      finish(running[0], running[1], running[2], mass_scale(f.right), t.rows, f.row_cost + from,
             f.row_lse + from);
    } else {
      for (int s = 0; s < 3; ++s) {
        std::memcpy(f.row_state + s * f.left.count + from, running[s], sizeof(T) * t.rows);
      }
    }
  }
}

template <typename T>
void forward(const Conditional<T>& f, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr decltype(&forward_mode<T, 0>) modes[] = {forward_mode<T, 0>, forward_mode<T, 1>,
                                                     forward_mode<T, 2>, forward_mode<T, 3>,
                                                     forward_mode<T, 4>, forward_mode<T, 5>};
  modes[f.mode](f, begin, end, sums, scratch);
}

// The stripes' sums of columns begin .. end, in double and in ascending order.
template <typename T>
void forward_columns(const Conditional<T>& f, const T* sums, int64_t stripes, int64_t size,
                     int64_t begin, int64_t end, T* cost, T* lse) {
  constexpr int64_t lanes = Simd<double>::lanes;
  const double offset = log2_of<double>(static_cast<double>(mass_scale(f.left)));
  for (int64_t j = begin; j < end; j += lanes) {
    const int64_t n = std::min(lanes, end - j);
    const T* at = sums + j;
    Vec<double> top = widened(at, n), total{}, sum{};
    for (int64_t s = 1; s < stripes; ++s) top = larger(top, widened(at + s * size, n));
    for (int64_t s = 0; s < stripes; ++s, at += size) {
      const Vec<double> e = exp2_of<double>(widened(at, n) - top);
      total += e * widened(at + f.padded, n);
      sum += e * widened(at + 2 * f.padded, n);
    }
    const Vec<double> logs = log2_of<double>(total);
    for (int64_t l = 0; l < n; ++l) {
      lse[j + l] = static_cast<T>((logs[l] + (top[l] + offset)) * 0.69314718055994530942);
      cost[j + l] = static_cast<T>(expected(total[l], sum[l]));
    }
  }
}
