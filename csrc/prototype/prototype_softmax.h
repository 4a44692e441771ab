// Prototypes: the softmax of a row, its log-sum-exp, and the cross-entropy of it.
//
// Logits are in log2 units. A row's largest logit is taken off before the exponentials, so that
// they are at most 1.
//
// Included once per instruction set, by prototype_kernels.h: no include guard.

template <typename T>
constexpr T log2e = T(1.44269504088896340736);
template <typename T>
constexpr T ln2 = T(0.69314718055994530942);

// Costs of a row become logits, in place; `kept` gets the distances. Returns the largest logit, 0
// where all are -inf.
template <typename T, Metric M>
inline T logits(const Prototypes<T>& f, int64_t row, T* S, T* kept) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const T scale = -f.per_temperature * log2e<T>;
  const uint8_t* mask = f.mask != nullptr && f.mask_row > 0 ? f.mask + row * f.mask_row : nullptr;
  Vec<T> most = broadcast(-infinite<T>);
  for (int64_t j = 0; j < f.padded; j += lanes) {
    const Vec<T> distance = distance_of<T, M>(load(S + j));
    if (kept != nullptr) store(kept + j, distance);
    const Vec<T> offset = load(f.offsets + j);
    // A choice, not a sum: a NaN row leaves what is masked masked.
    Vec<T> z = offset == -infinite<T> ? offset : distance * scale + offset;
    if (mask != nullptr) {
      z = lanes_of_mask<T>(mask + j, f.K - j) ? z : broadcast(-infinite<T>);
    }
    store(S + j, z);
    most = z > most ? z : most;
  }
  const T top = largest_across<T>(most);
  return top == -infinite<T> ? T{0} : top;
}

// Logits of a row become exp2(z - top), in place; returns their sum.
template <typename T>
inline T exponentials(const Prototypes<T>& f, T top, T* S) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> sum{}, more{};
  int64_t j = 0;
  for (; j + 2 * lanes <= f.padded; j += 2 * lanes) {
    const Vec<T> e0 = exp2_of<T>(load(S + j) - top), e1 = exp2_of<T>(load(S + j + lanes) - top);
    store(S + j, e0), store(S + j + lanes, e1);
    sum += e0, more += e1;
  }
  if (j < f.padded) {
    const Vec<T> e = exp2_of<T>(load(S + j) - top);
    store(S + j, e);
    sum += e;
  }
  return sum_across<T>(sum + more);
}

template <typename T, Metric M>
void softmax_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
                const PrototypeSums<T>& sums, T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Block<T> b = block_in(f, scratch);
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    costs<T, M>(f, b);
    for (int64_t i = 0; i < b.rows; ++i) {
      T* S = b.S + i * b.tile;
      const T top = logits<T, M>(f, b.first + i, S, nullptr);
      const T total = exponentials(f, top, S);
      io.lse[b.first + i] = top, b.totals[i] = total;
      const T inverse = total == 0 ? T{0} : 1 / total;
      for (int64_t j = 0; j < f.padded; j += lanes) {
        const Vec<T> p = load(S + j) * inverse;
        store(S + j, p);
        store(b.part.logit + j, load(b.part.logit + j) + p);
      }
      if (io.prob != nullptr) std::memcpy(io.prob + (b.first + i) * f.K, S, sizeof(T) * f.K);
    }
    add_part(f, sums, b);
    for (int64_t i = 0; i < b.rows; i += lanes) {
      store(b.totals + i, log2_of<T>(load(b.totals + i)));
    }
    for (int64_t i = 0; i < b.rows; ++i) {
      T& lse = io.lse[b.first + i];
      lse = (lse + b.totals[i]) * ln2<T>;
    }
  }
}

// Loss of a row over its value, in log2 units, from logits less `top` and the sum of exponentials:
// sum_j w_j t_ij (log2 total - z_ij).
template <typename T>
inline T soft_loss(const Prototypes<T>& f, const T* target, const T* class_weight, const T* S,
                   T top, T log_total) {
  T loss = 0;
  for (int64_t j = 0; j < f.K; ++j) {
    const T weight = class_weight == nullptr ? target[j] : target[j] * class_weight[j];
    if (weight != 0) loss += weight * (log_total - (S[j] - top));
  }
  return loss;
}
