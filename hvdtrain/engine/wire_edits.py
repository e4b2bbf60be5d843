"""What Horovod lacks on the wire: bfloat16 in every collective, and sums of halves that are not slow.

Sums are taken in fp32 and rounded to nearest even. Scaling (`Average`, pre- and postscale factors) is done in
fp32 too. Adasum, AMD GPUs and TensorFlow's in-place broadcast of variables refuse bfloat16, as they refuse
other types that they do not have.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

# What an installed Horovod's record lists when it was built with these edits: NumPy's names.
WIRE_TYPES = ("bfloat16",)

_BFLOAT16 = "Horovod 0.28.1 has no bfloat16 on the wire"
_SUMS = "Gloo adds halves one at a time, which makes fp16 slower than fp32; one sum serves Gloo and MPI"

_ALIASES = "reading a float's bits through another type's pointer is undefined: compilers may drop the write"


def _after(place: str, file: str, anchor: str, added: str) -> Edit:
    """Adds text behind an anchor, for bfloat16."""
    return Edit(f"bfloat16-{place}", file, anchor, anchor + added, _BFLOAT16)


def _operation(name: str) -> Edit:
    """Makes MPI reduce bfloat16 with an operation of ours."""
    usual = f"return dtype == HOROVOD_FLOAT16 ? mpi_float16_{name} : MPI_{name.upper()};"
    return Edit(
        f"bfloat16-mpi-{name}",
        "horovod/common/mpi/mpi_context.cc",
        usual,
        f"if (dtype == HOROVOD_BFLOAT16) return mpi_bfloat16.{name};\n  {usual}",
        _BFLOAT16,
    )


def _tensorflow_op(name: str, attribute: str = '.Attr("T: {') -> Edit:
    """Lets a TensorFlow op take bfloat16."""
    anchor = f'REGISTER_OP("Horovod{name}")\n    {attribute}'
    place = f"tensorflow-{name.lower()}"
    return _after(place, "horovod/tensorflow/mpi_ops.cc", anchor, "bfloat16, ")


WIRE_EDITS = (
    # The type, and its arithmetic.
    _after("enum", "horovod/common/message.h", "  HOROVOD_BOOL = 9,\n", "  HOROVOD_BFLOAT16 = 10,\n"),
    _after(
        "name",
        "horovod/common/message.cc",
        "      return bool_;\n",
        "    case HOROVOD_BFLOAT16:\n"
        '      static const std::string bfloat16("bfloat16");\n'
        "      return bfloat16;\n",
    ),
    _after(
        "size",
        "horovod/common/message.cc",
        "      return sizeof(bool);\n",
        "    case HOROVOD_BFLOAT16:\n      return 2;\n",
    ),
    Edit(
        "bfloat16-message",
        "horovod/common/wire/message_generated.h",
        "  DataType_MIN = DataType_HOROVOD_UINT8,\n  DataType_MAX = DataType_HOROVOD_BOOL\n",
        "  DataType_HOROVOD_BFLOAT16 = 10,\n"
        "  DataType_MIN = DataType_HOROVOD_UINT8,\n  DataType_MAX = DataType_HOROVOD_BFLOAT16\n",
        _BFLOAT16,
    ),
    Edit(
        "half-from-bits",
        "horovod/common/half.h",
        "*res = *reinterpret_cast<float const*>(&f);",
        "memcpy(res, &f, sizeof(f));",
        _ALIASES,
    ),
    Edit(
        "half-to-bits",
        "horovod/common/half.h",
        "unsigned const& s = *reinterpret_cast<unsigned const*>(src);",
        "unsigned s;\n  memcpy(&s, src, sizeof(s));",
        _ALIASES,
    ),
    Edit(
        "half-includes",
        "horovod/common/half.h",
        "#include <stdint.h>\n",
        "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n",
        "what the two edits of bits and the sums of halves use",
    ),
    Edit("half-sums", "horovod/common/half.h", "#endif // HOROVOD_HALF_H\n", patch("half_sums.h"), _SUMS),
    Edit(
        "half-sums-intrinsics",
        "horovod/common/half.cc",
        "#include <algorithm>\n",
        "#include <algorithm>\n\n#if defined(__x86_64__)\n#include <immintrin.h>\n#endif\n",
        _SUMS,
    ),
    Edit(
        "half-sums-code",
        "horovod/common/half.cc",
        patch("half_sums.old.cc"),
        patch("half_sums.new.cc"),
        _SUMS,
    ),
    _after(
        "scale",
        "horovod/common/ops/collective_operations.cc",
        "                       (unsigned short*)buffer_data, num_elements,\n"
        "                       (float)scale_factor);\n    break;\n",
        "  case HOROVOD_BFLOAT16:\n"
        "    ScaleBufferCPUImpl((const BFloat16*)fused_input_data,\n"
        "                       (BFloat16*)buffer_data, num_elements,\n"
        "                       (float)scale_factor);\n    break;\n",
    ),
    # Gloo.
    Edit(
        "half-sums-gloo",
        "horovod/common/ops/gloo_operations.cc",
        '#include "../global_state.h"\n',
        patch("gloo_half_sums.cc"),
        _SUMS,
    ),
    _after(
        "gloo",
        "horovod/common/ops/gloo_operations.cc",
        "    return new GlooAlgorithms<bool>(gloo_context);\n",
        "  case HOROVOD_BFLOAT16:\n    return new GlooAlgorithms<BFloat16>(gloo_context);\n",
    ),
    # MPI.
    Edit(
        "bfloat16-mpi",
        "horovod/common/mpi/mpi_context.h",
        "struct MPIContext {\n",
        patch("mpi_bfloat16.h"),
        _BFLOAT16,
    ),
    _after(
        "mpi-member",
        "horovod/common/mpi/mpi_context.h",
        "  MPI_Op mpi_float16_prod;\n",
        "\n  MPIBFloat16 mpi_bfloat16;\n",
    ),
    _after(
        "mpi-type",
        "horovod/common/mpi/mpi_context.cc",
        "    return MPI_C_BOOL;\n",
        "  case HOROVOD_BFLOAT16:\n    return mpi_bfloat16.type;\n",
    ),
    *(_operation(name) for name in ("sum", "min", "max", "prod")),
    *(
        Edit(
            f"bfloat16-mpi-create-{place}",
            "horovod/common/mpi/mpi_context.cc",
            f"mpi_float16_max, mpi_float16_prod);\n}}\n\nvoid MPIContext::{following}",
            "mpi_float16_max, mpi_float16_prod);\n"
            f"  mpi_bfloat16.Create();\n}}\n\nvoid MPIContext::{following}",
            _BFLOAT16,
        )
        for place, following in (("world", "InitializeForProcessSet("), ("set", "Finalize("))
    ),
    _after(
        "mpi-free",
        "horovod/common/mpi/mpi_context.cc",
        "    MPI_Op_free(&mpi_float16_prod);\n  }\n",
        "  mpi_bfloat16.Free();\n",
    ),
    # GPUs.
    _after(
        "nccl",
        "horovod/common/ops/nccl_operations.cc",
        "    return ncclFloat16;\n",
        "#if NCCL_VERSION_CODE >= 21003 && defined(__CUDA_BF16_TYPES_EXIST__)\n"
        "  case HOROVOD_BFLOAT16:\n    return ncclBfloat16;\n#endif\n",
    ),
    Edit(
        "bfloat16-cuda",
        "horovod/common/ops/cuda/cuda_kernels.cu",
        "#include <cuda_fp16.h>\n\nnamespace horovod {\nnamespace common {\n",
        patch("cuda_bfloat16.cu"),
        _BFLOAT16,
    ),
    Edit(
        "bfloat16-cuda-scale",
        "horovod/common/ops/cuda/cuda_kernels.cu",
        "    case HOROVOD_FLOAT32:\n      scale_buffer_k",
        "    case HOROVOD_BFLOAT16:\n"
        "      scale_buffer_k<<<blocks, threads, 0, stream>>>((const CudaBFloat16*) fused_input_data,\n"
        "                                                     (CudaBFloat16*) buffer_data, num_elements,\n"
        "                                                     (float) scale_factor);\n"
        "      break;\n    case HOROVOD_FLOAT32:\n      scale_buffer_k",
        _BFLOAT16,
    ),
    Edit(
        "bfloat16-cuda-batched-scale",
        "horovod/common/ops/cuda/cuda_kernels.cu",
        "   case HOROVOD_FLOAT32:\n     batched_scaled_memcpy_k",
        "   case HOROVOD_BFLOAT16:\n"
        "     batched_scaled_memcpy_k<CudaBFloat16, BLOCKS_PER_COPY_D2D_KERNEL>\n"
        "         <<<blocks, threads, 0, stream>>>(params, (float) scale_factor);\n"
        "     break;\n   case HOROVOD_FLOAT32:\n     batched_scaled_memcpy_k",
        _BFLOAT16,
    ),
    # PyTorch.
    _after(
        "torch-from",
        "horovod/torch/adapter_v2.cc",
        "    return ::torch::kHalf;\n",
        "  case common::HOROVOD_BFLOAT16:\n    return ::torch::kBFloat16;\n",
    ),
    _after(
        "torch-to",
        "horovod/torch/adapter_v2.cc",
        "    return common::HOROVOD_FLOAT16;\n",
        "  case ::torch::kBFloat16:\n    return common::HOROVOD_BFLOAT16;\n",
    ),
    Edit(
        "bfloat16-torch-collectives",
        "horovod/torch/mpi_ops_v2.cc",
        '  // join\n  m.def("horovod_torch_join", &DoJoin);\n',
        patch("torch_bfloat16.cc"),
        _BFLOAT16,
    ),
    # TensorFlow.
    _after(
        "tensorflow-from",
        "horovod/tensorflow/mpi_ops.cc",
        "    return DT_HALF;\n",
        "  case common::HOROVOD_BFLOAT16:\n    return DT_BFLOAT16;\n",
    ),
    _after(
        "tensorflow-to",
        "horovod/tensorflow/mpi_ops.cc",
        "    return common::HOROVOD_FLOAT16;\n",
        "  case DT_BFLOAT16:\n    return common::HOROVOD_BFLOAT16;\n",
    ),
    *(
        _tensorflow_op(name)
        for name in ("Allreduce", "GroupedAllreduce", "Reducescatter", "GroupedReducescatter")
    ),
    *(
        _tensorflow_op(name, '.Attr(\n        "T: {')
        for name in ("Allgather", "GroupedAllgather", "Broadcast", "Alltoall")
    ),
)
