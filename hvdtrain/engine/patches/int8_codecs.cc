// Horovod is compiled for FMA. Fused, what is lost would be that of a product that nobody receives.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

namespace {

inline __attribute__((always_inline)) int32_t Magnitude(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits & 0x7fffffff;
}

inline __attribute__((always_inline)) float StepOf(int32_t magnitude) {
  float largest;
  memcpy(&largest, &magnitude, sizeof(largest));
  return largest / 127;
}

// From the i-th number on.
inline __attribute__((always_inline)) void
QuantiseFrom(size_t i, float step, int8_t* integers, float* lost, const float* numbers, const float* noise,
             size_t n) {
  const float divisor = step > 0 ? step : 1;
  for (; i < n; ++i) {
    float x = std::floor(numbers[i] / divisor + noise[i]);
    x = x > -127 ? x : -127; // NaN too
    x = x < 127 ? x : 127;
    integers[i] = (int8_t)x;
    lost[i] = numbers[i] - step * x;
  }
}

void QuantiseRow(float* step, int8_t* integers, float* lost, const float* numbers, const float* noise,
                 size_t n) {
  // Compared as integers: NaN's bits exceed those of any number.
  int32_t top = 0;
  for (size_t i = 0; i < n; ++i) {
    top = std::max(top, Magnitude(numbers[i]));
  }
  *step = StepOf(top);
  QuantiseFrom(0, *step, integers, lost, numbers, noise, n);
}

void DequantiseRow(float* numbers, float step, const int8_t* integers, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    numbers[i] = step * integers[i];
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void
QuantiseRowAvx2(float* step, int8_t* integers, float* lost, const float* numbers, const float* noise, size_t n) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i tops = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i bits = _mm256_loadu_si256((const __m256i*)(numbers + i));
    tops = _mm256_max_epi32(tops, _mm256_and_si256(bits, magnitude));
  }
  int32_t each[8];
  _mm256_storeu_si256((__m256i*)each, tops);
  int32_t top = *std::max_element(each, each + 8);
  for (; i < n; ++i) {
    top = std::max(top, Magnitude(numbers[i]));
  }
  *step = StepOf(top);
  const __m256 steps = _mm256_set1_ps(*step), divisors = _mm256_set1_ps(*step > 0 ? *step : 1);
  const __m256 low = _mm256_set1_ps(-127), high = _mm256_set1_ps(127);
  // Packing works in halves of a register; this puts its fours in order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (i = 0; i + 32 <= n; i += 32) {
    __m256i whole[4];
    for (int j = 0; j < 4; ++j) {
      __m256 x = _mm256_loadu_ps(numbers + i + 8 * j);
      __m256 y = _mm256_floor_ps(_mm256_add_ps(_mm256_div_ps(x, divisors), _mm256_loadu_ps(noise + i + 8 * j)));
      y = _mm256_min_ps(_mm256_max_ps(y, low), high);
      _mm256_storeu_ps(lost + i + 8 * j, _mm256_sub_ps(x, _mm256_mul_ps(steps, y)));
      whole[j] = _mm256_cvtps_epi32(y);
    }
    __m256i a = _mm256_packs_epi32(whole[0], whole[1]), b = _mm256_packs_epi32(whole[2], whole[3]);
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
    _mm256_storeu_si256((__m256i*)(integers + i), bytes);
  }
  QuantiseFrom(i, *step, integers, lost, numbers, noise, n);
}

__attribute__((target("avx2"))) void
DequantiseRowAvx2(float* numbers, float step, const int8_t* integers, size_t n) {
  const __m256 steps = _mm256_set1_ps(step);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(integers + i)));
    _mm256_storeu_ps(numbers + i, _mm256_mul_ps(steps, _mm256_cvtepi32_ps(whole)));
  }
  DequantiseRow(numbers + i, step, integers + i, n - i);
}
#endif

} // namespace

void QuantiseInt8(float* steps, int8_t* integers, float* lost, const float* numbers, const float* noise,
                  size_t rows, size_t length) {
  auto quantise = &QuantiseRow;
#if defined(__x86_64__)
  quantise = HasAvx2() ? &QuantiseRowAvx2 : quantise;
#endif
  for (size_t row = 0, at = 0; row < rows; ++row, at += length) {
    quantise(steps + row, integers + at, lost + at, numbers + at, noise + at, length);
  }
}

void DequantiseInt8(float* numbers, const float* steps, const int8_t* integers, size_t rows, size_t length) {
  auto dequantise = &DequantiseRow;
#if defined(__x86_64__)
  dequantise = HasAvx2() ? &DequantiseRowAvx2 : dequantise;
#endif
  for (size_t row = 0; row < rows; ++row) {
    dequantise(numbers + row * length, steps[row], integers + row * length, length);
  }
}

#pragma GCC pop_options

