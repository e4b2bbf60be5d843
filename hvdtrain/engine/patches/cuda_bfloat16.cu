#include <cuda_fp16.h>
#include <cuda_bf16.h>

namespace horovod {
namespace common {

// bfloat16 that is multiplied in float on every architecture. `float * __nv_bfloat16` would be ambiguous.
struct CudaBFloat16 {
  __nv_bfloat16 value;

  __device__ operator float() const { return __bfloat162float(value); }
  __device__ CudaBFloat16& operator=(float f) {
    value = __float2bfloat16(f);
    return *this;
  }
  __device__ CudaBFloat16& operator*=(float f) { return *this = *this * f; }
};
