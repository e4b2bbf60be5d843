namespace horovod {
namespace common {

// bfloat16: the upper half of a float. Computes in float; rounds to nearest even; a NaN stays one, and is quiet.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  BFloat16(float value) {
    uint32_t u;
    memcpy(&u, &value, sizeof(u));
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    uint32_t quiet = (u >> 16) | 0x40;
    bits = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
  operator float() const {
    uint32_t u = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &u, sizeof(value));
    return value;
  }
};

// c = a + b for n numbers: added in float, rounded to nearest even. c may be a.
void SumFloat16(uint16_t* c, const uint16_t* a, const uint16_t* b, size_t n);
void SumBFloat16(BFloat16* c, const BFloat16* a, const BFloat16* b, size_t n);

// The codecs of 8 and 16 bits in one pass each. Callers cut vectors into pieces for their threads.

// halves = flat * scale, rounded to nearest even; finite numbers beyond +-limit become the limit. Returns how many
// exceeded it, infinities included.
int64_t NarrowFloat16(uint16_t* halves, const float* flat, float scale, float limit, size_t n);

// Whether a vector of so many floats is better written past the cache: there is no room for what comes before its
// reader, and memory need not be read before it is written.
inline bool PastCache(size_t floats) { return floats >= (1 << 20); }

// flat = halves * factor. Returns the largest bits of a magnitude: those of a NaN if there is one.
uint16_t WidenFloat16(float* flat, const uint16_t* halves, float factor, size_t n, bool past_cache);

// sent = flat + residual as bfloat16; lost = what rounding took from it.
void ShortenBFloat16(BFloat16* sent, float* lost, const float* flat, const float* residual, size_t n,
                     bool past_cache);

// flat = sums.
void LengthenBFloat16(float* flat, const BFloat16* sums, size_t n, bool past_cache);

// Rows of so many numbers. step = a row's largest magnitude / 127; integers = row / step + noise, rounded down;
// lost = what they do not stand for. The step of a row is not finite where one of its numbers is not.
void QuantiseInt8(float* steps, int8_t* integers, float* lost, const float* numbers, const float* noise,
                  size_t rows, size_t length);

// numbers = steps * integers, row by row.
void DequantiseInt8(float* numbers, const float* steps, const int8_t* integers, size_t rows, size_t length);

#if HAVE_MPI
void bfloat16_sum(void* invec, void* inoutvec, int* len, MPI_Datatype* datatype);
void bfloat16_min(void* invec, void* inoutvec, int* len, MPI_Datatype* datatype);
void bfloat16_max(void* invec, void* inoutvec, int* len, MPI_Datatype* datatype);
void bfloat16_prod(void* invec, void* inoutvec, int* len, MPI_Datatype* datatype);
#endif

} // namespace common
} // namespace horovod

#endif // HOROVOD_HALF_H
