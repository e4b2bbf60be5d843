#if defined(__x86_64__)
namespace {

// What follows is compiled for instructions that the build does not assume, so ask when it runs. There is no asking
// for F16C before GCC 11, but no processor has AVX2 without it.
bool HasAvx2() {
  static const bool found = __builtin_cpu_supports("avx2");
  return found;
}

__attribute__((target("avx,f16c"))) size_t
SumFloat16InEights(uint16_t* c, const uint16_t* a, const uint16_t* b, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(a + i)));
    __m256 y = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(b + i)));
    __m128i sum = _mm256_cvtps_ph(_mm256_add_ps(x, y), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i*)(c + i), sum);
  }
  return i;
}

} // namespace
#endif

void SumFloat16(uint16_t* c, const uint16_t* a, const uint16_t* b, size_t n) {
  size_t i = 0;
#if defined(__x86_64__)
  if (HasAvx2()) {
    i = SumFloat16InEights(c, a, b, n);
  }
#endif
  for (; i < n; ++i) {
    float x, y;
    HalfBits2Float(a + i, &x);
    HalfBits2Float(b + i, &y);
    x += y;
    Float2HalfBits(&x, c + i);
  }
}

namespace {

inline __attribute__((always_inline)) void
SumBFloat16Loop(BFloat16* c, const BFloat16* a, const BFloat16* b, size_t n) {
  // No element depends on an earlier one, also where c is a.
#pragma GCC ivdep
  for (size_t i = 0; i < n; ++i) {
    c[i] = (float)a[i] + (float)b[i];
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void
SumBFloat16Avx2(BFloat16* c, const BFloat16* a, const BFloat16* b, size_t n) {
  SumBFloat16Loop(c, a, b, n);
}
#endif

} // namespace

void SumBFloat16(BFloat16* c, const BFloat16* a, const BFloat16* b, size_t n) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    SumBFloat16Avx2(c, a, b, n);
    return;
  }
#endif
  SumBFloat16Loop(c, a, b, n);
}

#if HAVE_MPI
void float16_sum(void* invec, void* inoutvec, int* len,
                 MPI_Datatype* datatype) {
  auto* inout = (uint16_t*)inoutvec;
  SumFloat16(inout, inout, (const uint16_t*)invec, *len);
}

void bfloat16_sum(void* invec, void* inoutvec, int* len,
                  MPI_Datatype* datatype) {
  auto* inout = (BFloat16*)inoutvec;
  SumBFloat16(inout, inout, (const BFloat16*)invec, *len);
}

#define BFLOAT16_OPERATION(name, result)                                       \
  void bfloat16_##name(void* invec, void* inoutvec, int* len,                  \
                       MPI_Datatype* datatype) {                               \
    auto* in = (const BFloat16*)invec;                                         \
    auto* inout = (BFloat16*)inoutvec;                                         \
    for (int i = 0; i < *len; ++i) {                                           \
      float x = in[i], y = inout[i];                                           \
      inout[i] = result;                                                       \
    }                                                                          \
  }
BFLOAT16_OPERATION(min, std::min(y, x))
BFLOAT16_OPERATION(max, std::max(y, x))
BFLOAT16_OPERATION(prod, y * x)
#undef BFLOAT16_OPERATION

