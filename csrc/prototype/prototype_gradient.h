// Prototypes: gradients. A tile of dL/dlogit (or dL/ddistance) becomes W = dL/ddot, then
//
//   dx_i  = W_i mu + own_i x_i,    own_i = -sum_j W_ij        (squares)
//   dmu_j = W_j^T x + own_j mu_j           -sum_j W_ij cos_ij (cosine, of normalised vectors)
//
// with what is ready (centred, normalised) for x and mu; cosine's are divided by the norm at last.
// Under squares a close pair's weight leaves the tile, and its gradient W (mu - x) is added from
// the difference of the points as they were given.
//
// Included once per instruction set, by prototype_kernels.h: no include guard.

// What dL/dlogit is multiplied with to give dL/ddot, besides 1/distance (euclidean).
template <typename T, Metric M>
inline T weight_of_logit(T per_temperature) {
  return M == Metric::sqeuclidean ? 2 * per_temperature : per_temperature;
}

// One row: G = dL/dlogit becomes W, in place; returns own_i and adds to the sums of columns.
template <typename T, Metric M>
inline T weigh_row(const Prototypes<T>& f, T factor, T* S, const T* kept, bool want_logit,
                   const PrototypeSums<T>& sums) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> own{};
  for (int64_t j = 0; j < f.padded; j += lanes) {
    const Vec<T> G = load(S + j);
    if (want_logit) store(sums.logit + j, load(sums.logit + j) + G);
    Vec<T> W = G * factor;
    if constexpr (M == Metric::euclidean) {
      const Vec<T> distance = load(kept + j);
      W = distance == T{0} ? Vec<T>{} : W / distance;
    }
    store(S + j, W);
    if constexpr (M == Metric::dot) continue;
    const Vec<T> share = M == Metric::cosine ? -W * (T{1} - load(kept + j)) : -W;
    own += share;
    store(sums.own + j, load(sums.own + j) + share);
  }
  return sum_across<T>(own);
}

template <typename T>
inline void write_row(const Prototypes<T>& f, const T* row, int64_t i, void* dx) {
  const int64_t at = i * f.D;
  if constexpr (sizeof(T) == 4) {
    if (f.element == Element::bf16) return narrow_row(row, static_cast<Bf16*>(dx) + at, f.D);
    if (f.element == Element::f16) return narrow_row(row, static_cast<F16*>(dx) + at, f.D);
  }
  std::memcpy(static_cast<T*>(dx) + at, row, sizeof(T) * f.D);
}

// What a block of W brings: dx of its rows, and the stripe's sum for dmu.
template <typename T, Metric M>
struct Gradients {
  const Prototypes<T>& f;
  const PrototypeRows<T>& io;
  const PrototypeSums<T>& sums;
  Block<T>& b;
  T factor;
  PrototypeSums<T> part;  // of the block, so that no sum runs over more than its rows
  std::vector<ClosePair<T>> close;

  Gradients(const Prototypes<T>& f_, const PrototypeRows<T>& io_, const PrototypeSums<T>& sums_,
            Block<T>& b_, T factor_)
      : f(f_), io(io_), sums(sums_), b(b_), factor(factor_), part(b_.part) {}

  // Row i from dL/dlogit in S, whose close pairs are next from `pair` on; returns those after it.
  size_t weigh(int64_t i, size_t pair) {
    T* S = b.S + i * b.tile;
    const T* kept = b.kept + i * b.tile;
    for (; pair < close.size() && close[pair].row == i; ++pair) {
      ClosePair<T>& it = close[pair];
      const T G = S[it.column];
      it.weight = G * factor;
      if (M == Metric::euclidean) {
        it.weight = kept[it.column] == 0 ? T{0} : it.weight / kept[it.column];
      }
      if (io.want_prior) part.logit[it.column] += G;
      S[it.column] = 0;
    }
    b.own[i] = weigh_row<T, M>(f, factor, S, kept, io.want_prior, part);
    return pair;
  }

  // The row has no gradient: whatever it holds reaches nothing.
  size_t skip(int64_t i, size_t pair) {
    std::fill_n(b.S + i * b.tile, f.padded, T{0});
    silence(f, b, i);
    b.own[i] = 0;
    for (; pair < close.size() && close[pair].row == i; ++pair) close[pair].weight = 0;
    return pair;
  }

  void finish() {
    // Runs of prototypes in turn, so that a run of W stays in the first cache for the whole depth,
    // and a run of dmu is a piece of memory.
    constexpr int64_t wide = columns<T>, run_of_mu = 8 * tile_rows;
    for (int64_t j = 0; io.dx != nullptr && j < f.K; j += dot_run) {
      for (int64_t k = 0; k < f.depth; k += wide) {
        product<T>(b.rows, std::min(dot_run, f.K - j), b.S + j, b.tile, 1,
                   f.ready + j * f.stride + k, f.stride, b.gradient + k, f.stride, j == 0);
      }
    }
    for (int64_t j = 0; io.want_mu && j < f.K; j += run_of_mu) {
      for (int64_t k = 0; k < f.depth; k += wide) {
        product<T>(std::min(run_of_mu, f.K - j), b.rows, b.S + j, 1, b.tile, b.ready + k, f.stride,
                   sums.mu + j * f.stride + k, f.stride, false);
      }
    }
    add_part(f, sums, b);
    if (of_squares<M> && !close.empty()) add_close();
    if (io.dx == nullptr) return;
    for (int64_t i = 0; i < b.rows; ++i) {
      T* row = b.gradient + i * f.stride;
      if constexpr (M != Metric::dot) {
        const T* ready = b.ready + i * f.stride;
        const T scale = M == Metric::cosine ? b.norms[i] : T{1};
        for (int64_t k = 0; k < f.D; ++k) row[k] = (row[k] + b.own[i] * ready[k]) * scale;
      }
      write_row(f, row, b.first + i, io.dx);
    }
  }

  __attribute__((noinline)) void add_close() {
    int64_t row = -1;
    const T* x = nullptr;
    for (const ClosePair<T>& it : close) {
      if (it.weight == 0) continue;
      if (row != it.row) row = it.row, x = given_row(f, b.first + row, b.room);
      const T* mu = f.mu + it.column * f.D;
      T* to_x = b.gradient + it.row * f.stride;
      T* to_mu = sums.mu + it.column * f.stride;
      for (int64_t k = 0; io.dx != nullptr && k < f.D; ++k) to_x[k] += it.weight * (mu[k] - x[k]);
      for (int64_t k = 0; io.want_mu && k < f.D; ++k) to_mu[k] += it.weight * (x[k] - mu[k]);
    }
  }
};

template <typename T>
inline bool all_zero(const T* values, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    if (values[j] != 0) return false;
  }
  return true;
}

template <typename T, Metric M>
void distance_backward_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin,
                          int64_t end, const PrototypeSums<T>& sums, T* scratch) {
  Block<T> b = block_in(f, scratch);
  Gradients<T, M> gradients(f, io, sums, b, -weight_of_logit<T, M>(T{1}));
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    gradients.close.clear();
    size_t pair = 0;
    for (int64_t i = 0; i < b.rows; ++i) {
      const T* given = io.given + (b.first + i) * f.K;
      T *S = b.S + i * b.tile, *kept = b.kept + i * b.tile;
      if (all_zero(given, f.K)) {
        pair = gradients.skip(i, pair);
        continue;
      }
      std::memcpy(S, given, sizeof(T) * f.K);
      std::memcpy(kept, io.distance + (b.first + i) * f.K, sizeof(T) * f.K);
      for (int64_t j = f.K; j < f.padded; ++j) S[j] = 0, kept[j] = 0;
      if constexpr (of_squares<M>) {
        for (int64_t j = 0; j < f.K; ++j) {
          const T square = M == Metric::euclidean ? kept[j] * kept[j] : kept[j];
          if (is_close<T, M>(f, b.norms[i], square, j)) gradients.close.push_back({i, j, T{0}});
        }
      }
      pair = gradients.weigh(i, pair);
    }
    gradients.finish();
  }
}

template <typename T, Metric M>
constexpr bool keeps_distances = M == Metric::euclidean || M == Metric::cosine;

template <typename T, Metric M>
void softmax_backward_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin,
                         int64_t end, const PrototypeSums<T>& sums, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Block<T> b = block_in(f, scratch);
  const T* g_mass = io.g_mass != nullptr && !all_zero(io.g_mass, f.K) ? io.g_mass : nullptr;
  Gradients<T, M> gradients(f, io, sums, b, weight_of_logit<T, M>(f.per_temperature));
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    gradients.close.clear();
    costs<T, M>(f, b, &gradients.close);
    size_t pair = 0;
    for (int64_t i = 0; i < b.rows; ++i) {
      T* S = b.S + i * b.tile;
      const int64_t row = b.first + i;
      const T* g_prob = io.g_prob == nullptr ? nullptr : io.g_prob + row * f.K;
      const T g_lse = io.g_lse == nullptr ? T{0} : io.g_lse[row];
      T* kept = keeps_distances<T, M> ? b.kept + i * b.tile : nullptr;
      const T top = logits<T, M>(f, row, S, kept);
      const T total = exponentials(f, top, S);
      const bool silent =
          g_lse == 0 && g_mass == nullptr && (g_prob == nullptr || all_zero(g_prob, f.K));
      if (total == 0 || silent) {
        pair = gradients.skip(i, pair);
        continue;
      }
      const T inverse = 1 / total;
      for (int64_t j = 0; j < f.K; ++j) {
        b.given[j] = (g_prob ? g_prob[j] : T{0}) + (g_mass ? g_mass[j] : T{0});
      }
      std::fill(b.given + f.K, b.given + f.padded, T{0});
      Vec<T> inner{};
      for (int64_t j = 0; j < f.padded; j += lanes) {
        const Vec<T> p = load(S + j) * inverse;
        store(S + j, p);
        inner += p * load(b.given + j);
      }
      const T shift = g_lse - sum_across<T>(inner);
      for (int64_t j = 0; j < f.padded; j += lanes) {
        store(S + j, load(S + j) * (load(b.given + j) + shift));
      }
      pair = gradients.weigh(i, pair);
    }
    gradients.finish();
  }
}

template <typename T>
inline bool may_use(const Prototypes<T>& f, int64_t row, int64_t j) {
  return f.offsets[j] != -infinite<T> && (f.mask == nullptr || f.mask[row * f.mask_row + j] != 0);
}

// Loss of each row; and, where gradients are wanted, those of the reduced loss, in the same pass.
template <typename T, Metric M>
void cross_entropy_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin,
                      int64_t end, const PrototypeSums<T>& sums, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Block<T> b = block_in(f, scratch);
  Gradients<T, M> gradients(f, io, sums, b, weight_of_logit<T, M>(f.per_temperature));
  const bool differentiate = io.dx != nullptr || io.want_mu || io.want_prior;
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    gradients.close.clear();
    costs<T, M>(f, b, differentiate ? &gradients.close : nullptr);
    size_t pair = 0;
    for (int64_t i = 0; i < b.rows; ++i) {
      T* S = b.S + i * b.tile;
      const int64_t row = b.first + i;
      const T value = io.value[row];
      const T* target = io.soft == nullptr ? nullptr : io.soft + row * f.K;
      T total = 0, top = 0, own_logit = 0;
      const int64_t label = target == nullptr ? io.label[row] : 0;
      const bool part = io.part[row] != 0;
      if (part) {
        T* kept = differentiate && keeps_distances<T, M> ? b.kept + i * b.tile : nullptr;
        top = logits<T, M>(f, row, S, kept);
        // The logits themselves are gone after the exponentials: what a soft target needs of them
        // is summed up before, against a total that is added after.
        if (target != nullptr) {
          own_logit = soft_loss<T>(f, target, io.class_weight, S, top, T{0});
        } else {
          own_logit = S[label] - top;
        }
        total = exponentials(f, top, S);
      }
      if (!part || total == 0) {
        // Distances of a row that takes part and whose exponentials are all 0 have overflowed.
        io.loss[row] = part ? std::numeric_limits<T>::quiet_NaN() : T{0};
        b.totals[i] = 1;
        if (differentiate) pair = gradients.skip(i, pair);
        continue;
      }
      b.totals[i] = total;
      io.loss[row] = target != nullptr ? own_logit : -value * own_logit;
      if (!differentiate) continue;
      const T scale = io.share * (io.row_weight == nullptr ? T{1} : io.row_weight[row]);
      const T to_prob = scale * value / total;
      if (scale == 0) {
        pair = gradients.skip(i, pair);
        continue;
      }
      for (int64_t j = 0; j < f.padded; j += lanes) store(S + j, load(S + j) * to_prob);
      if (target != nullptr) {
        for (int64_t j = 0; j < f.K; ++j) {
          const T weight = io.class_weight == nullptr ? target[j] : target[j] * io.class_weight[j];
          if (may_use(f, row, j)) S[j] -= scale * weight;
        }
      } else if (may_use(f, row, label)) {
        S[label] -= scale * value;
      }
      pair = gradients.weigh(i, pair);
    }
    for (int64_t i = 0; i < b.rows; i += lanes) {
      store(b.totals + i, log2_of<T>(load(b.totals + i)));
    }
    for (int64_t i = 0; i < b.rows; ++i) {
      const T value = io.value[b.first + i];
      T& loss = io.loss[b.first + i];
      if (io.part[b.first + i]) loss = (loss + value * b.totals[i]) * ln2<T>;
    }
    if (differentiate) gradients.finish();
  }
}

// Gradients of prototypes begin .. end from the first stripe's sums, where all stripes were added.
template <typename T>
void finish_prototypes(const Prototypes<T>& f, const PrototypeSums<T>& sums, int64_t begin,
                       int64_t end, T* dmu) {
  for (int64_t j = begin; j < end; ++j) {
    const T* from = sums.mu + j * f.stride;
    const T* ready = f.ready + j * f.stride;
    T* out = dmu + j * f.D;
    const T own = f.metric == Metric::dot ? T{0} : sums.own[j];
    const T scale = f.metric == Metric::cosine ? f.norms[j] : T{1};
    for (int64_t k = 0; k < f.D; ++k) out[k] = (from[k] + own * ready[k]) * scale;
  }
}
