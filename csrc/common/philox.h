// Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as dropout
// uses it: 8 elements a counter, a 16-bit slice each.
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

// keep[d] = 1 where element (n, d) is kept, for d in [0, count).
inline void dropout_row(uint64_t seed, int64_t n, uint32_t threshold, int64_t count,
                        uint8_t* keep) {
  constexpr int width = 8;  // counters at once: the compiler turns the inner loops into vectors
  for (int64_t group = 0; group * 8 < count; group += width) {
    uint32_t c0[width], c1[width], c2[width], c3[width];
    for (int i = 0; i < width; ++i) {
      c0[i] = static_cast<uint32_t>(group + i);
      c1[i] = static_cast<uint32_t>(n);
      c2[i] = static_cast<uint32_t>(static_cast<uint64_t>(n) >> 32);
      c3[i] = 0;
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 7; ++round) {
      for (int i = 0; i < width; ++i) {
        const uint64_t m0 = uint64_t{0xD2511F53} * c0[i];
        const uint64_t m1 = uint64_t{0xCD9E8D57} * c2[i];
        c0[i] = static_cast<uint32_t>(m1 >> 32) ^ c1[i] ^ k0;
        c1[i] = static_cast<uint32_t>(m1);
        c2[i] = static_cast<uint32_t>(m0 >> 32) ^ c3[i] ^ k1;
        c3[i] = static_cast<uint32_t>(m0);
      }
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    uint8_t kept[width * 8];
    for (int i = 0; i < width; ++i) {
      const uint32_t words[4] = {c0[i], c1[i], c2[i], c3[i]};
      for (int w = 0; w < 4; ++w) {
        kept[i * 8 + 2 * w] = (words[w] & 0xFFFF) >= threshold;
        kept[i * 8 + 2 * w + 1] = (words[w] >> 16) >= threshold;
      }
    }
    const int64_t left = count - group * 8;
    std::memcpy(keep + group * 8, kept, left < width * 8 ? left : width * 8);
  }
}
