namespace {

int64_t NarrowEach(uint16_t* halves, const float* flat, float scale, float limit, size_t n) {
  int64_t clips = 0;
  for (size_t i = 0; i < n; ++i) {
    float x = flat[i] * scale;
    if (std::fabs(x) > limit) {
      ++clips;
      x = std::isinf(x) ? x : std::copysign(limit, x);
    }
    Float2HalfBits(&x, halves + i);
  }
  return clips;
}

uint16_t WidenEach(float* flat, const uint16_t* halves, float factor, size_t n) {
  int top = 0;
  for (size_t i = 0; i < n; ++i) {
    HalfBits2Float(halves + i, flat + i);
    flat[i] *= factor;
    top = std::max(top, halves[i] & 0x7fff);
  }
  return (uint16_t)top;
}

inline __attribute__((always_inline)) void
ShortenLoop(BFloat16* sent, float* lost, const float* flat, const float* residual, size_t n) {
  // No element depends on an earlier one.
#pragma GCC ivdep
  for (size_t i = 0; i < n; ++i) {
    float sum = flat[i] + residual[i];
    BFloat16 rounded = sum;
    sent[i] = rounded;
    lost[i] = sum - (float)rounded;
  }
}

void LengthenLoop(float* flat, const BFloat16* sums, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    flat[i] = sums[i];
  }
}

#if defined(__x86_64__)
// How many of n floats come before the first that is aligned for a vector of eight.
size_t Unaligned(const float* first, size_t n) {
  return std::min(n, (size_t)(-(uintptr_t)first & 31) / sizeof(float));
}

__attribute__((target("avx2,f16c"))) int64_t
NarrowInEights(uint16_t* halves, const float* flat, float scale, float limit, size_t n) {
  const __m256 scales = _mm256_set1_ps(scale), limits = _mm256_set1_ps(limit);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  int64_t clips = 0;
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 x = _mm256_mul_ps(_mm256_loadu_ps(flat + i), scales);
    // Also true where an element is NaN. Hardly an update ever has anything to clip.
    __m256 beyond = _mm256_cmp_ps(_mm256_and_ps(x, magnitude), limits, _CMP_NLE_UQ);
    if (__builtin_expect(_mm256_movemask_ps(beyond), 0)) {
      clips += NarrowEach(halves + i, flat + i, scale, limit, 8);
    } else {
      _mm_storeu_si128((__m128i*)(halves + i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
  }
  return clips + NarrowEach(halves + i, flat + i, scale, limit, n - i);
}

template <bool past_cache>
__attribute__((target("avx2,f16c"))) uint16_t
WidenInEights(float* flat, const uint16_t* halves, float factor, size_t n) {
  const __m256 factors = _mm256_set1_ps(factor);
  const __m128i magnitude = _mm_set1_epi16(0x7fff);
  __m128i top = _mm_setzero_si128();
  size_t i = Unaligned(flat, n);
  uint16_t first = WidenEach(flat, halves, factor, i);
  for (; i + 8 <= n; i += 8) {
    __m128i x = _mm_loadu_si128((const __m128i*)(halves + i));
    top = _mm_max_epi16(top, _mm_and_si128(x, magnitude));
    __m256 wide = _mm256_mul_ps(_mm256_cvtph_ps(x), factors);
    past_cache ? _mm256_stream_ps(flat + i, wide) : _mm256_store_ps(flat + i, wide);
  }
  _mm_sfence();
  uint16_t tops[8];
  _mm_storeu_si128((__m128i*)tops, top);
  uint16_t last = WidenEach(flat + i, halves + i, factor, n - i);
  return std::max({first, last, *std::max_element(tops, tops + 8)});
}

template <bool past_cache>
__attribute__((target("avx2"))) void
LengthenInEights(float* flat, const BFloat16* sums, size_t n) {
  size_t i = Unaligned(flat, n);
  LengthenLoop(flat, sums, i);
  for (; i + 8 <= n; i += 8) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(sums + i)));
    __m256 wide = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    past_cache ? _mm256_stream_ps(flat + i, wide) : _mm256_store_ps(flat + i, wide);
  }
  _mm_sfence();
  LengthenLoop(flat + i, sums + i, n - i);
}

// Upper halves of sums, rounded, each in its upper half.
__attribute__((target("avx2"))) inline __m256i RoundedHalves(__m256 sums) {
  __m256i bits = _mm256_castps_si256(sums);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_and_si256(up, _mm256_set1_epi32(0xffff0000));
}

template <bool past_cache>
__attribute__((target("avx2"))) void
ShortenAvx2(BFloat16* sent, float* lost, const float* flat, const float* residual, size_t n) {
  size_t i = Unaligned(lost, n);
  ShortenLoop(sent, lost, flat, residual, i);
  for (; i + 16 <= n; i += 16) {
    __m256 x = _mm256_add_ps(_mm256_loadu_ps(flat + i), _mm256_loadu_ps(residual + i));
    __m256 y = _mm256_add_ps(_mm256_loadu_ps(flat + i + 8), _mm256_loadu_ps(residual + i + 8));
    if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)), 0)) {
      ShortenLoop(sent + i, lost + i, flat + i, residual + i, 16);
      continue;
    }
    __m256i a = RoundedHalves(x), b = RoundedHalves(y);
    __m256i both = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    both = _mm256_permute4x64_epi64(both, 0xd8);
    if (past_cache) {
      _mm256_stream_si256((__m256i*)(sent + i), both);
      // Nor does what is read once stay in it.
      _mm_prefetch((const char*)(flat + i + 128), _MM_HINT_NTA);
      _mm_prefetch((const char*)(residual + i + 128), _MM_HINT_NTA);
    } else {
      _mm256_storeu_si256((__m256i*)(sent + i), both);
    }
    // Past the cache in any case: the residual is not read before the next update.
    _mm256_stream_ps(lost + i, _mm256_sub_ps(x, _mm256_castsi256_ps(a)));
    _mm256_stream_ps(lost + i + 8, _mm256_sub_ps(y, _mm256_castsi256_ps(b)));
  }
  _mm_sfence();
  ShortenLoop(sent + i, lost + i, flat + i, residual + i, n - i);
}
#endif

} // namespace

int64_t NarrowFloat16(uint16_t* halves, const float* flat, float scale, float limit, size_t n) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    return NarrowInEights(halves, flat, scale, limit, n);
  }
#endif
  return NarrowEach(halves, flat, scale, limit, n);
}

uint16_t WidenFloat16(float* flat, const uint16_t* halves, float factor, size_t n, bool past_cache) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    return past_cache ? WidenInEights<true>(flat, halves, factor, n) : WidenInEights<false>(flat, halves, factor, n);
  }
#endif
  return WidenEach(flat, halves, factor, n);
}

void ShortenBFloat16(BFloat16* sent, float* lost, const float* flat, const float* residual, size_t n,
                     bool past_cache) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    // Streams want both vectors aligned where the first of them is.
    bool streams = past_cache && ((uintptr_t)(sent + Unaligned(lost, n)) & 31) == 0;
    streams ? ShortenAvx2<true>(sent, lost, flat, residual, n) : ShortenAvx2<false>(sent, lost, flat, residual, n);
    return;
  }
#endif
  ShortenLoop(sent, lost, flat, residual, n);
}

void LengthenBFloat16(float* flat, const BFloat16* sums, size_t n, bool past_cache) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    past_cache ? LengthenInEights<true>(flat, sums, n) : LengthenInEights<false>(flat, sums, n);
    return;
  }
#endif
  LengthenLoop(flat, sums, n);
}

} // namespace common
} // namespace horovod
