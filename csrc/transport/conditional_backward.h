// Conditional transport, backward: the tile of dots becomes the tile of their gradients W, and
//
//   d left = W right + a_i left,   d right = W^T left + b_j right
//
// where a and b gather what depends on a point alone (norms under cosine and squared Euclid, and
// the centre). With pi = softmax of a direction and (g, h) the gradients to its cost and lse,
// dL/dc_ij = pi_ij g_i and dL/ds_ij = pi_ij (g_i (c_ij - cost_i) + h_i), summed over both
// directions; the mass gradient takes exp(s_ij - lse_i) without the mass. e_ij = exp2(s_ij - lse_i)
// serves both directions where every lse of the tile lies within 40 octaves of one middle and no
// mass is below 2^-40 (then e is below 2^40, and what underflows is below 2^-46 in the other
// direction).
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

template <typename T>
constexpr T octaves = sizeof(T) == 8 ? T(400) : T(40);
template <typename T>
constexpr T least_mass = sizeof(T) == 8 ? T(1e-120) : T(9.094947e-13);
// 0.9 of the exponent range: 0 * exp2(.) must stay 0 where a point without mass is far ahead.
template <typename T>
constexpr T largest_exponent = sizeof(T) == 8 ? T(921.6) : T(115.2);

// dL/ddot, and up to three sums a point gathers: of the squared distance, of the cosine, of the
// centre.
template <typename T>
struct Gradient {
  Vec<T> dot, square, cos, centre;
};

template <typename T, int MODE>
inline Gradient<T> gradient_of(const Pair<T, MODE>& pair, Vec<T> kept, int64_t i, int64_t j,
                               Vec<T> dc, Vec<T> ds) {
  Gradient<T> g{};
  if constexpr (MODE == 0) {
    const Cosine<T> both = cosine<T>(kept, pair.row, i, pair.column, j);
    g.dot = ds - dc * both.inverse;
    g.cos = -dc * both.cos;
  } else if constexpr (MODE == 1 || MODE == 2) {
    const Vec<T> d = ds - dc;
    g.dot = d * (load(pair.column[high] + j) * pair.row[high][i]);
    g.cos = d * kept;
  } else if constexpr (MODE == 3) {
    g.square = T{2} * dc;
    g.centre = ds;
    g.dot = ds - g.square;
  } else if constexpr (MODE == 4) {
    const Vec<T> inverse = load(pair.column[high] + j) * pair.row[high][i];
    g.square = T{2} * dc;
    g.centre = ds * inverse;
    g.cos = ds * pair.logit(kept, i, j);
    g.dot = g.centre - g.square;
  } else {
    g.square = T{2} * (dc - ds);
    g.dot = -g.square;
  }
  return g;
}

template <int MODE>
constexpr bool has_square = MODE >= 3;
template <int MODE>
constexpr bool has_cos = MODE < 3 || MODE == 4;
template <int MODE>
constexpr bool has_centre = MODE == 3 || MODE == 4;

// What a side gathers, in arrays: gradient to the mass, then the three sums of `Gradient`.
enum Gathered { of_mass, of_square, of_cos, of_centre };

template <typename T>
struct Weights {
  T* S;
  int64_t stride, rows, n;
  T *row_sums, *column_sums;  // arrays of block_rows, of column_stride
  int64_t column_stride;
  T* factor;  // of columns, for the shared exponential
  bool rows_on, columns_on;
};

template <typename T, int MODE, bool SHARED, int R>
inline void weigh_rows(const Pair<T, MODE>& pair, const Conditional<T>& f, const Weights<T>& w,
                       int64_t i) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> of_row[R][4];
  for (int r = 0; r < R; ++r) {
    for (Vec<T>& sum : of_row[r]) sum = Vec<T>{};
  }
  for (int64_t j = 0; j < w.n; j += lanes) {
    T *at_mass = w.column_sums + j, *at_square = at_mass + of_square * w.column_stride;
    T* at_cos = at_mass + of_cos * w.column_stride;
    T* at_centre = at_mass + of_centre * w.column_stride;
    // These rows' sums start at 0 and are added: errors grow with their number plus that of the
    // adds.
    Vec<T> mass_sum{}, square_sum{}, cos_sum{}, centre_sum{};
    for (int r = 0; r < R; ++r) {
      T* S = w.S + (i + r) * w.stride + j;
      const Side<T>& row = pair.row;
      const Side<T>& column = pair.column;
      const Vec<T> kept = pair.kept(load(S), i + r, j);
      const Vec<T> c = pair.cost(kept, i + r, j);
      Vec<T> s = pair.logit(kept, i + r, j) * f.scale;
      Vec<T> e{}, d{};
      if constexpr (SHARED) {
        e = exp2_of<T>(s - row[lse][i + r]);
        d = e * (load(w.factor + j) * row[factor][i + r]);
      } else {
        const Vec<T> most = broadcast(largest_exponent<T>);
        if (w.rows_on) e = exp2_of<T>(smaller<Vec<T>>(s - row[lse][i + r], most));
        if constexpr (pair.row_shift) s += row[shift][i + r] * f.scale;
        if (w.columns_on) d = exp2_of<T>(smaller<Vec<T>>(s - load(column[lse] + j), most));
      }
      const Vec<T> row_logit =
          e * ((c - row[cost][i + r]) * row[g_cost][i + r] + row[g_lse][i + r]);
      const Vec<T> column_logit =
          d * ((c - load(column[cost] + j)) * load(column[g_cost] + j) + load(column[g_lse] + j));
      mass_sum += row_logit;
      of_row[r][of_mass] += column_logit;
      const Vec<T> q = load(column[mass] + j);
      const T p = row[mass][i + r];
      const Vec<T> dc = (e * q) * row[g_cost][i + r] + (d * p) * load(column[g_cost] + j);
      const Vec<T> ds = (row_logit * q + column_logit * p) * f.per_temperature;
      const Gradient<T> g = gradient_of<T, MODE>(pair, kept, i + r, j, dc, ds);
      store(S, g.dot);
      if constexpr (has_square<MODE>) {
        square_sum += g.square;
        of_row[r][of_square] += g.square;
      }
      if constexpr (has_cos<MODE>) {
        cos_sum += g.cos;
        of_row[r][of_cos] += g.cos;
      }
      if constexpr (has_centre<MODE>) {
        centre_sum += g.centre;
        of_row[r][of_centre] += g.centre;
      }
    }
    store(at_mass, load(at_mass) + mass_sum);
    if constexpr (has_square<MODE>) store(at_square, load(at_square) + square_sum);
    if constexpr (has_cos<MODE>) store(at_cos, load(at_cos) + cos_sum);
    if constexpr (has_centre<MODE>) store(at_centre, load(at_centre) + centre_sum);
  }
  for (int r = 0; r < R; ++r) {
    for (int which = 0; which < 4; ++which) {
      w.row_sums[which * block_rows + i + r] += sum_across<T>(of_row[r][which]);
    }
  }
}

template <typename T, int MODE>
void weigh(const Conditional<T>& f, const Weights<T>& w, const Side<T>& row, const Side<T>& column,
           int64_t width) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const Pair<T, MODE> pair{row, column};
  // `lse` of a row stands without the row's own shift, which no logit of the tile holds.
  const auto full = [&](int64_t i) {
    return row[lse][i] + (pair.row_shift ? row[shift][i] * f.scale : T{0});
  };
  T low_lse = far<T>, high_lse = -far<T>, least = T{1};
  const auto see = [&](T value, T weight) {
    low_lse = value < low_lse ? value : low_lse;
    high_lse = value > high_lse ? value : high_lse;
    least = weight < least ? weight : least;
  };
  for (int64_t i = 0; i < w.rows; ++i) see(full(i), row[mass][i]);
  for (int64_t j = 0; j < width; ++j) see(column[lse][j], column[mass][j]);
  const T middle = (low_lse + high_lse) / 2;
  if (high_lse - middle <= octaves<T> && least >= least_mass<T>) {
    for (int64_t i = 0; i < w.rows; ++i) row[factor][i] = full(i) - middle;
    for (int64_t i = 0; i < w.rows; i += lanes) {
      store(row[factor] + i, exp2_of<T>(load(row[factor] + i)));
    }
    for (int64_t j = 0; j < w.n; j += lanes) {
      store(w.factor + j, exp2_of<T>(middle - load(column[lse] + j)));
    }
    int64_t i = 0;
    for (; i + 2 <= w.rows; i += 2) weigh_rows<T, MODE, true, 2>(pair, f, w, i);
    if (i < w.rows) weigh_rows<T, MODE, true, 1>(pair, f, w, i);
  } else {
    for (int64_t i = 0; i < w.rows; ++i) weigh_rows<T, MODE, false, 1>(pair, f, w, i);
  }
}

// What a point's own vector and the centre enter its gradient with.
template <typename T>
struct Own {
  T point, centre;
};

template <typename T>
inline Own<T> own_share(int mode, T inverse, T square, T cos, T centre) {
  const bool squares = mode >= 3, cosines = mode < 3 || mode == 4;
  const T pulled = cosines ? inverse * inverse * cos : T{0};
  const T moved = mode == 3 || mode == 4 ? centre : T{0};
  return {(squares ? square : T{0}) - pulled, mode == 4 ? moved - pulled : moved};
}

// out = (or +=) G + share.point * point + share.centre * centre.
template <typename T>
inline void write_gradient(int64_t D, const T* G, const T* point, const T* centre, Own<T> share,
                           bool add, T* out) {
  if (add) {
    for (int64_t k = 0; k < D; ++k) out[k] += G[k] + share.point * point[k];
  } else {
    for (int64_t k = 0; k < D; ++k) out[k] = G[k] + share.point * point[k];
  }
  if (share.centre != 0) {
    for (int64_t k = 0; k < D; ++k) out[k] += share.centre * centre[k];
  }
}

template <typename T, int MODE>
void backward_mode(const Conditional<T>& f, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes, wide = columns<T>;
  Pieces<T> pieces{scratch};
  T* rows = pieces.take(block_rows * f.stride);
  T* gradient = pieces.take(block_rows * f.stride);
  const Side<T> row{pieces.take(block_rows * conditional_fields), block_rows};
  const int64_t chunk = chunk_of<T>(f.padded);
  Weights<T> w{};
  w.stride = chunk + 64 / static_cast<int64_t>(sizeof(T));
  w.S = pieces.take(block_rows * w.stride);
  w.row_sums = pieces.take(4 * block_rows);
  w.column_stride = f.padded;
  w.factor = pieces.take(chunk);
  T* right = sums;
  T* gathered = sums + f.padded * f.depth;
  std::memset(gathered, 0, sizeof(T) * conditional_backward_sums * f.padded);
  // A section whose columns all came without a gradient needs one exponential alone.
  for (int64_t j = 0; j < f.width; ++j) w.columns_on |= f.columns[lse][j] != far<T>;

  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = block * block_rows;
    w.rows = std::min(block_rows, f.left.count - from);
    make_ready(f, f.left, true, from, w.rows, w.rows, rows, row, 0);
    w.rows_on = false;
    for (int64_t i = 0; i < w.rows; ++i) {
      w.rows_on |= row[lse][i] != far<T>;
      if (MODE == 3) row[lse][i] -= row[shift][i] * f.scale;
    }
    std::memset(w.row_sums, 0, sizeof(T) * 4 * block_rows);
    for (int64_t at = 0; at < f.padded; at += chunk) {
      const int64_t panels = std::min(chunk, f.padded - at);
      const int64_t width = std::min(panels, f.width - at);
      if (width <= 0) break;
      dots(f, rows, f.stride, w.rows, at, panels, w.S, w.stride);
      w.n = std::min(panels, round_up(width, lanes));
      w.column_sums = gathered + at;
      const Side<T> column{f.columns.data + at, f.columns.length};
      weigh<T, MODE>(f, w, row, column, width);
      for (int64_t k = 0; k < f.depth; k += wide) {
        if (f.d_left != nullptr) {
          product<T>(w.rows, width, w.S, w.stride, 1, f.panels + k * f.padded + at * wide, wide,
                     gradient + k, f.stride, at == 0);
        }
        if (f.want_right) {
          product<T>(width, w.rows, w.S, 1, w.stride, rows + k, f.stride, right + at * f.depth + k,
                     f.depth, block == begin);
        }
      }
    }
    const T* gain = w.row_sums;
    for (int64_t i = 0; i < w.rows; ++i) {
      if (f.d_left != nullptr) {
        const Own<T> share =
            own_share(f.mode, row[high][i], gain[of_square * block_rows + i],
                      gain[of_cos * block_rows + i], gain[of_centre * block_rows + i]);
        write_gradient(f.D, gradient + i * f.stride, rows + i * f.stride, f.centre, share,
                       !f.first_section, f.d_left + (from + i) * f.D);
      }
      if (f.d_left_mass != nullptr) {
        const T value = gain[of_mass * block_rows + i];
        T* out = f.d_left_mass + from + i;
        *out = f.first_section ? value : *out + value;
      }
    }
  }
}

template <typename T>
void backward(const Conditional<T>& f, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr decltype(&backward_mode<T, 0>) modes[] = {backward_mode<T, 0>, backward_mode<T, 1>,
                                                      backward_mode<T, 2>, backward_mode<T, 3>,
                                                      backward_mode<T, 4>, backward_mode<T, 5>};
  modes[f.mode](f, begin, end, sums, scratch);
}

// Adds the stripes' sums of columns begin .. end into the first stripe's, and writes gradients.
template <typename T>
void backward_columns(const Conditional<T>& f, T* sums, int64_t stripes, int64_t size,
                      int64_t begin, int64_t end, T* d_right, T* d_right_mass) {
  constexpr int64_t wide = columns<T>;
  const int64_t place = f.padded * f.depth;
  T* gathered = sums + place;
  for (int64_t s = 1; s < stripes; ++s) {
    const T* more = sums + s * size;
    if (d_right != nullptr) {
      for (int64_t i = begin * f.depth; i < end * f.depth; ++i) sums[i] += more[i];
    }
    for (int64_t which = 0; which < conditional_backward_sums; ++which) {
      for (int64_t j = begin; j < end; ++j) {
        gathered[which * f.padded + j] += more[place + which * f.padded + j];
      }
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    if (d_right_mass != nullptr) d_right_mass[f.first + j] = gathered[of_mass * f.padded + j];
    if (d_right == nullptr) continue;
    T* G = sums + j * f.depth;
    T* out = d_right + (f.first + j) * f.D;
    const Own<T> share =
        own_share(f.mode, f.columns[high][j], gathered[of_square * f.padded + j],
                  gathered[of_cos * f.padded + j], gathered[of_centre * f.padded + j]);
    // The point as the products read it: back from the panels.
    for (int64_t k = 0; k < f.D; k += wide) {
      write_gradient(std::min(wide, f.D - k), G + k, f.panels + k * f.padded + j * wide,
                     f.centre ? f.centre + k : nullptr, share, false, out + k);
    }
  }
}
